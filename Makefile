# make run       train both variants on the embedded digits, 32 bits
# make test      all tests, with coverage
# make test-gpu  the tests that need a GPU
# make check     style, format and types
# make clean     remove the environment and the caches of the tools
# Each target first creates the environment .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-gpu check clean

run: $(VENV)/.ready
	$(BIN)/python run.py --method main_mmasia --dataset digits --code-length 32
	$(BIN)/python run.py --method main_tomm --dataset digits --code-length 32

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 3 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90

test-gpu: $(VENV)/.ready
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An existing environment is kept: pip only adds what is missing.
$(VENV)/.ready: requirements.txt requirements-search.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
