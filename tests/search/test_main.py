"""`python -m search`: the choice of the command, and how every command ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from search.__main__ import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(("line", "problem"), [([], "no command given"), (["find"], "'find' is not a command")])
def test_a_missing_or_unknown_command_is_one_line_with_the_commands(line, problem, capsys):
    assert main(line) == 2
    message = f"python -m search: {problem}; the commands are encode, export, build, query, serve.\n"
    assert capsys.readouterr() == ("", message)


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_reads_its_own_flags(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: python -m search {name} ")
    assert main([name]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"python -m search {name}: the following arguments are required: ")
    assert printed.count("\n") == 1


def test_a_port_must_exist(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--port", "65536"]) == 2
    assert "argument --port: '65536' must be a whole number" in capsys.readouterr().err


def test_serve_says_at_once_that_it_loads(tmp_path, capsys):
    """A large index takes half a minute."""
    assert main(["serve", str(tmp_path / "index")]) == 2
    first, error = capsys.readouterr().err.splitlines()
    assert first == f"Loading {tmp_path / 'index'} …" and error.startswith("python -m search serve: ")


def test_a_reader_that_has_gone_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "search", "--help"], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
