"""How every command ends: its exit status, and one line on stderr."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import run
from data.pixels import ImageFiles
from tests import image_trees
from training import preflight
from utils.command import Parser, bounded, run_command
from utils.errors import UserError
from utils.interrupt import Interrupted

ROOT = Path(__file__).parents[2]


def test_a_user_error_is_one_line_and_status_2(capsys):
    def work():
        raise UserError("--lr 0: must be above 0.")

    assert run_command("python -m search build", work) == 2
    assert capsys.readouterr() == ("", "python -m search build: --lr 0: must be above 0.\n")


def test_the_status_of_the_work_is_the_status_of_the_command():
    assert run_command("x", lambda: None) == 0 and run_command("x", lambda: 1) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line_that_says_what_is_kept(number, status, capsys):
    before = signal.getsignal(number)

    def work(*notes):
        try:
            os.kill(os.getpid(), number)
        except Interrupted as stopped:
            for note in notes:
                stopped.add_note(note)
            raise

    assert run_command("x", work) == status
    assert capsys.readouterr().err == f"x: stopped by {signal.Signals(number).name}; nothing was written.\n"
    assert run_command("x", lambda: work("two parts are kept", "run it again")) == status
    assert capsys.readouterr().err.endswith("; two parts are kept; run it again.\n")
    assert signal.getsignal(number) is before


def test_a_signal_that_the_shell_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_command("x", lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_training_starts_is_one_line(number, status, tmp_path, monkeypatch, capsys):
    """Such as while the cache of decoded images is built."""
    monkeypatch.setattr(preflight, "load_data", lambda *_: os.kill(os.getpid(), number))
    assert run.main(["--dataset", "digits", "--logs", str(tmp_path)]) == status
    error = capsys.readouterr().err
    assert error == f"run.py: stopped by {signal.Signals(number).name}; nothing was written.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_signal_while_images_are_decoded_is_one_line(cache, number, status, tmp_path, monkeypatch, capsys):
    image_trees.folder_tree(tmp_path / "photos")
    real, rows = ImageFiles.decode, []

    def decode(self, row):
        rows.append(row)
        if len(rows) == 5:
            os.kill(os.getpid(), number)
        return real(self, row)

    monkeypatch.setattr(ImageFiles, "decode", decode)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    flags = ["--dataset", "folder", "--root", str(tmp_path / "photos"), "--weights", "none", "--cache", cache]
    assert run.main([*flags, "--logs", str(tmp_path / "logs")]) == status
    assert capsys.readouterr().err == f"run.py: stopped by {signal.Signals(number).name}; nothing was written.\n"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file() and path not in before} <= {
        "folder-256.pixels.lock"
    }


def test_a_reader_that_has_gone_ends_the_command_quietly():
    script = """
import sys
from utils.command import run_command
def work():
    print("first", flush=True)
    sys.stdin.read()  # until the reader has gone
    print("second")
sys.exit(run_command("x", work))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=120) == 141 and process.stderr.read() == b""
    process.stderr.close()


def test_an_error_that_nobody_reads_keeps_its_status(monkeypatch):
    def gone(text):
        raise BrokenPipeError

    def work():
        raise UserError("bad")

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=gone, flush=lambda: None))
    assert run_command("x", work) == 2


def test_a_parser_complains_in_one_line(capsys):
    def work():
        parser = Parser(prog="x")
        parser.add_argument("--number", type=bounded(int, 1))
        parser.parse_args(["--number", "0"])

    assert run_command("x", work) == 2
    expected = "x: argument --number: '0' must be a whole number, 1 or more (x --help lists the flags)\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("parse", "good", "bad", "rule"),
    [
        (bounded(int), ["-3", "0", "5"], ["1.5", "", "x"], "a whole number"),
        (bounded(int, 1), ["1", "7"], ["0", "-1", "1e3", "one"], "a whole number, 1 or more"),
        (bounded(int, 0, 2**63 - 1), ["0", str(2**63 - 1)], ["-1", str(2**63), "9" * 400], "0 or more, at most"),
        (bounded(float, 0), ["0", "1e-5"], ["-0.1", "nan", "inf"], "a number, 0 or more"),
        (bounded(float, 0, exclusive=True), ["1e-9"], ["0", "-1", "inf", "nan"], "a number, above 0"),
        (bounded(float, 0, 1, exclusive=True), ["0.5"], ["0", "1", "2"], "above 0, below 1"),
    ],
)
def test_bounded(parse, good, bad, rule):
    assert [parse(text) for text in good] == [float(text) if "." in text or "e" in text else int(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' must be .*{rule}"):
            parse(text)
