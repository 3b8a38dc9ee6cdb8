# make run    on a fresh machine: environment, then both variants on the embedded digits, 32 bits
# make test   on a fresh machine: environment, then all tests
# make check  style and types
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check clean

run: $(VENV)/.ready
	$(BIN)/python run.py --method main_mmasia --dataset digits --code-length 32
	$(BIN)/python run.py --method main_tomm --dataset digits --code-length 32

test: $(VENV)/.ready
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=90

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An environment that stands already is used as it is: pip only adds what is missing.
$(VENV)/.ready: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
