"""`python -m search`: the choice of the command, and how every command ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import search.encode
import search.store
from search.__main__ import COMMANDS, main
from tests.image_trees import save_photo

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(("line", "problem"), [([], "no command given"), (["find"], "'find' is not a command")])
def test_a_missing_or_unknown_command_is_one_line_with_the_commands(line, problem, capsys):
    assert main(line) == 2
    names = "export, encode, build, add, remove, optimize, query, serve, parquet"
    message = f"python -m search: {problem}; the commands are {names}.\n"
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
    """A large store takes seconds."""
    assert main(["serve", str(tmp_path / "store")]) == 2
    first, error = capsys.readouterr().err.splitlines()
    assert first == f"Loading {tmp_path / 'store'} …" and error.startswith("python -m search serve: ")


def test_build_add_remove_optimize_and_parquet_say_what_they_did(tmp_path, photos, model_file, capsys, monkeypatch):
    store = str(tmp_path / "store")

    def printed(*line):
        assert main([str(word) for word in line]) == 0
        return capsys.readouterr().out

    def counts(added, changed, unchanged, skipped, held):
        words = f"{added} added, {changed} encoded again, {unchanged} unchanged, {skipped} skipped"
        return f"{words}: {held} images in 12 bits in {store}\n"

    assert printed("build", model_file, photos, "--store", store) == counts(30, 0, 0, 0, 30)
    assert printed("build", model_file, photos, "--store", store) == counts(0, 0, 30, 0, 30)
    save_photo(photos / "日本" / "new.png", 50)
    save_photo(photos / "日本" / "Bild 01.png", 51)
    (photos / "bad.png").write_bytes(b"no image")
    assert printed("add", store, photos, "--batch-size", 5) == counts(1, 1, 29, 1, 31)
    (photos / "日本" / "new.png").unlink()
    assert printed("remove", store, "--missing") == f"1 images removed: 30 in {store}\n"
    assert main(["remove", store, "日本/Bild 01.png", "unknown"]) == 0
    assert capsys.readouterr() == (f"1 images removed: 29 in {store}\n", "unknown: is not in the store\n")
    assert printed("optimize", store) == f"29 images, no index: {store}\n"
    first, recall = printed("optimize", store, "--index", "ivf").splitlines()
    assert first == f"29 images, an index of 4 lists: {store}"
    assert recall == "recall@10 of the index: 1.000 (`query --probes` reads more lists)"
    assert printed("optimize", store, "--index", "none") == f"29 images, no index: {store}\n"
    assert printed("parquet", store, "-o", tmp_path / "a.parquet") == f"29 images: written to {tmp_path}/a.parquet\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["remove", "STORE"], "give either the names of images or --missing."),
        (["remove", "STORE", "a.png", "--missing"], "give either the names of images or --missing."),
        (["add", "STORE", "no.png"], "no.png: there is no such file or folder."),
        (["parquet", "STORE", "-o", "no/where.parquet"], "-o no/where.parquet: there is no folder"),
    ],
)
def test_wrong_flags_are_one_line(store, line, sentence, capsys):
    assert main([store.uri if word == "STORE" else word for word in line]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"python -m search {line[0]}: ") and sentence in printed and printed.count("\n") == 1


def test_an_interrupted_build_continues(tmp_path, photos, model_file, capsys, monkeypatch):
    monkeypatch.setattr(search.store, "_IMAGES_IN_VERSION", 8)
    prepare, seen = search.encode.prepare_image, []

    def stop_at_25(path, *rest):
        seen.append(path)
        if len(seen) == 25:
            raise KeyboardInterrupt
        return prepare(path, *rest)

    monkeypatch.setattr(search.encode, "prepare_image", stop_at_25)
    line = ["build", str(model_file), str(photos), "--store", str(tmp_path / "store"), "--num-workers", "1"]
    line += ["--batch-size", "4"]
    assert main(line) == 130
    assert capsys.readouterr().err.endswith("; the store is whole; run the same command again to continue.\n")
    held = len(search.store.Store(str(tmp_path / "store")))
    assert held % 8 == 0 and 0 < held < 25
    monkeypatch.setattr(search.encode, "prepare_image", prepare)
    assert main(line) == 0
    assert capsys.readouterr().out.startswith(f"{30 - held} added, 0 encoded again, {held} unchanged")


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
