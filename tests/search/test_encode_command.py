"""`python -m search encode`: the file, the images, and what is refused."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import search.encode
from data.image_paths import find_images
from search.__main__ import main
from search.model import Model
from tests.image_trees import photo
from tests.search.encode_small import read, signs
from tests.search.tiny_model import BITS
from utils.hamming import pack_words


def test_the_same_images_give_the_same_bytes(model_file, photos, tmp_path):
    for name in ("a.npz", "b.npz"):
        assert main(["encode", str(model_file), str(photos), "-o", str(tmp_path / name), "--num-workers", "3"]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_bits_have_the_order_of_the_evaluation(model_file, photos, tmp_path):
    main(["encode", str(model_file), str(photos), "-o", str(tmp_path / "codes.npz")])
    content = read(tmp_path / "codes.npz")
    (words,) = pack_words(torch.from_numpy(signs(content)))  # 12 bits in a word of two bytes
    assert words.tobytes() == content["codes"].tobytes()


def test_the_file_and_its_shares(model_file, photos, tmp_path, capsys):
    output = tmp_path / "codes.npz"
    assert main(["encode", str(model_file), str(photos), "-o", str(output)]) == 0
    assert f"30 images in 12 bits: written to {output}" in capsys.readouterr().out
    content = read(output)
    assert sorted(content) == ["code_length", "codes", "fingerprint", "names", "settings"]
    assert content["codes"].dtype == np.uint8 and content["codes"].shape == (30, 2)
    assert content["names"].dtype.kind == "U" and list(content["names"]) == find_images([str(photos)])
    model = Model.load(model_file)
    assert int(content["code_length"]) == BITS and str(content["fingerprint"]) == model.fingerprint
    assert json.loads(str(content["settings"])) == model.settings
    assert len(np.unique(content["codes"], axis=0)) > 10


@pytest.mark.parametrize("what", ["empty folder", "missing", "empty list", "blank line"])
def test_no_image_found(what, model_file, tmp_path, capsys):
    given = tmp_path / {"empty folder": "empty", "missing": "gone.jpg"}.get(what, "list.txt")
    if what == "empty folder":
        given.mkdir()
    elif what != "missing":
        given.write_text("" if what == "empty list" else "a.jpg\n\nb.jpg\n")
    assert main(["encode", str(model_file), str(given), "-o", str(tmp_path / "codes.npz")]) == 2
    message = capsys.readouterr().err
    assert str(given) in message and message.count("\n") == 1
    assert not (tmp_path / "codes.npz").exists()


def test_damaged_images_are_named_and_left_out(model_file, photos, tmp_path, capsys):
    good = find_images([str(photos)])
    (photos / "Äpfel" / "cut.jpg").write_bytes(Path(good[0]).read_bytes()[:300])
    (photos / "日本" / "text.png").write_text("no image")
    (tmp_path / "more.txt").write_text("gone.png\n")
    output = tmp_path / "codes.npz"
    assert main(["encode", str(model_file), str(photos), str(tmp_path / "more.txt"), "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert "30 images in 12 bits, 3 skipped: written to" in captured.out
    skipped = [line for line in captured.err.splitlines() if "skipped (" in line]
    assert [line.split(": skipped")[0] for line in skipped] == [
        str(photos / "Äpfel" / "cut.jpg"),
        str(photos / "日本" / "text.png"),
        str(tmp_path / "gone.png"),
    ]
    assert skipped[2].endswith("(missing)")
    assert list(read(output)["names"]) == good
    main(["encode", str(model_file), *good, "-o", str(tmp_path / "good.npz")])
    assert np.array_equal(read(output)["codes"], read(tmp_path / "good.npz")["codes"])


def test_a_pipe_and_a_large_image_are_left_out(model_file, tmp_path, capsys):
    photo(1, 40, 30).save(tmp_path / "a.png")
    photo(1, 41, 30).save(tmp_path / "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    command = ["encode", str(model_file), str(tmp_path), str(tmp_path / "pipe.png"), "--max-pixels", "1200"]
    assert main([*command, "-o", str(tmp_path / "codes.npz")]) == 0
    assert list(read(tmp_path / "codes.npz")["names"]) == [str(tmp_path / "a.png")]
    error = capsys.readouterr().err
    assert "b.png: skipped (41 × 30 pixels are more than 1,200; make it smaller, or raise --max-pixels)" in error
    assert "pipe.png: skipped (not a file, but a folder, a pipe or a device)" in error


def test_no_image_can_be_read(model_file, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert main(["encode", str(model_file), str(tmp_path / "bad.png"), "-o", str(tmp_path / "codes.npz")]) == 2
    assert "None of the 1 images could be read." in capsys.readouterr().err
    assert not (tmp_path / "codes.npz").exists()


def test_a_name_that_is_not_unicode(model_file, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        photo(1).save(name)
    except OSError:
        pytest.skip("this file system has Unicode names only")
    assert main(["encode", str(model_file), str(tmp_path), "-o", str(tmp_path / "codes.npz")]) == 0
    assert list(read(tmp_path / "codes.npz")["names"]) == [name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "argument --batch-size: '0' must be a whole number, 1 or more"),
        (["--num-workers", "-1"], "argument --num-workers: '-1' must be a whole number, 0 or more"),
        (["--device", "tpu"], "--device tpu"),
        (["--shard", "0/4"], "unrecognized arguments: --shard 0/4"),
        (["-o", "gone/codes.npz"], "there is no folder gone"),
        (["-o", "."], "is a folder"),
    ],
)
def test_bad_flags(flags, message, model_file, photos, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["encode", str(model_file), str(photos), *flags]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1


def test_flags_may_be_anywhere(model_file, photos, tmp_path):
    one, two = find_images([str(photos)])[:2]
    output = str(tmp_path / "codes.npz")
    for line in (
        [str(model_file), "-o", output, one, two],
        [str(model_file), one, "-o", output, "--device", "cpu", two],
        ["--device", "cpu", str(model_file), one, "-o", output, "--", two],
    ):
        assert main(["encode", *line]) == 0
        assert list(read(output)["names"]) == [one, two]
        Path(output).unlink()


def test_no_images_given(model_file, capsys):
    assert main(["encode", str(model_file)]) == 2
    assert "the following arguments are required: IMAGES" in capsys.readouterr().err


def test_a_full_disk(model_file, photos, tmp_path, capsys):
    """Files may have 100 bytes: the write fails, and the old file is unchanged."""
    output = tmp_path / "out"
    output.write_bytes(b"before")
    listing = sorted(os.listdir(tmp_path))
    command = ["encode", str(model_file), str(photos)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status = main([*command, "-o", str(output)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    message = capsys.readouterr().err
    assert "could not be written" in message and "--logs" not in message and message.count("\n") == 1
    assert output.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == listing


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(number, status, model_file, photos, tmp_path, capsys, monkeypatch):
    prepared, sent = search.encode.prepare_image, []

    def stop(*arguments):
        if not sent:  # once: the thread finishes its batch, perhaps after the command
            sent.append(number)
            os.kill(os.getpid(), number)
        return prepared(*arguments)

    monkeypatch.setattr(search.encode, "prepare_image", stop)
    before, handler = sorted(os.listdir(tmp_path)), signal.getsignal(signal.SIGTERM)
    assert (
        main(["encode", str(model_file), str(photos), "-o", str(tmp_path / "codes.npz"), "--num-workers", "1"])
        == status
    )
    assert f"stopped by {signal.Signals(number).name}; nothing was written" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_as_a_program(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "search", "encode", str(tmp_path / "gone"), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("python -m search encode: ") and result.stderr.count("\n") == 1
