"""What the documents name exists: the flags of their commands, and files of the project."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]

# An indented line with `python -m MODULE COMMAND ...`, or with run.py, whose group "module" is then empty.
COMMAND = re.compile(
    r"^    .*(?:python -m (?P<module>(?:benchmarks|dataset|reports|search|tests)[\w.]*)(?: (?P<command>[a-z]+\b(?!/)))?"
    r"|(?:python|--) run\.py\b)(?P<rest>.*)",
    re.M,
)
FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
# Names with capital letters stand for the reader's own files.
FILE = re.compile(r"(?<![\w/.-])(?:benchmarks|data|docs|modules|results|tests|training|utils)/[a-z0-9_/-]+\.[a-z]+\b")
OF_THE_READER = {"results/mine.csv"}


def commands():
    """{(module, command): the flags that the documents give it}; module "" is run.py."""
    used = {}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in COMMAND.finditer(text):
            flags = FLAG.findall(re.sub('"[^"]*"', "", found["rest"].partition(" # ")[0]))
            used.setdefault((found["module"] or "", found["command"] or ""), set()).update(flags)
    return used


USED = commands()


@pytest.mark.parametrize(("module", "command"), sorted(USED))
def test_the_flags_of_documented_commands_exist(module, command, monkeypatch, capsys):
    name = module if "." in module else f"{module}.__main__"
    monkeypatch.delitem(sys.modules, name, raising=False)  # another test may have imported it
    monkeypatch.setattr(sys, "argv", [module or "run.py", *([command] if command else []), "--help"])
    with pytest.raises(SystemExit) as stopped:
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    assert stopped.value.code in (None, 0)
    assert USED[module, command] <= set(FLAG.findall(capsys.readouterr().out))


def test_the_documents_have_commands_of_every_kind():
    assert {"", "reports", "search", "benchmarks.step", "dataset.export_digits"} <= {module for module, _ in USED}
    assert "--resume" in USED["", ""] and "--figure" in USED["search", "query"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_that_a_document_names_exist(path):
    named = set(FILE.findall(path.read_text(encoding="utf-8"))) - OF_THE_READER
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
