"""`python -m search encode` and `export`: the file, the images, and what is refused."""

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
from data import Options, load_data
from search.__main__ import main
from search.encode import find_images
from search.model import load_model
from tests.image_trees import photo
from tests.search.encode_small import BITS, SIZE, read, signs
from training.network_codes import encode
from utils.hamming import pack_words


def test_codes_are_those_of_the_evaluation_of_the_dataset(run_folder, photos, tmp_path, capsys):
    output = tmp_path / "codes.npz"
    assert main(["encode", str(run_folder), str(photos), "-o", str(output), "--device", "cpu"]) == 0
    assert "30 images in 12 bits: written to" in capsys.readouterr().out
    content = read(output)
    assert sorted(content) == ["code_length", "codes", "fingerprint", "names", "request", "settings"]
    assert content["codes"].dtype == np.uint8 and content["codes"].shape == (30, 2)
    assert content["names"].dtype.kind == "U" and len(content["names"]) == 30
    assert int(content["code_length"]) == BITS
    settings = json.loads(str(content["settings"]))
    assert settings == {
        "backbone": "alexnet",
        "code_length": BITS,
        "image_size": SIZE,
        "dataset": "folder",
        "method": "main_mmasia",
    }
    split = load_data("folder", photos, Options(image_size=SIZE, cache="off", num_workers=1))
    model = load_model(run_folder)
    assert str(content["fingerprint"]) == model.fingerprint
    own = {}
    for half in (split.query, split.database):
        codes = encode(model.model, half, batch_size=7, device=torch.device("cpu"))
        own |= dict(zip((str(photos / name) for name in half.paths), codes.numpy(), strict=True))
    assert list(content["names"]) == sorted(own)
    assert np.array_equal(signs(content), [own[name] for name in content["names"]])
    assert len(np.unique(content["codes"], axis=0)) > 1  # the small network does tell images apart


def test_the_same_images_give_the_same_bytes(run_folder, photos, tmp_path):
    for name in ("a.npz", "b.npz"):
        assert main(["encode", str(run_folder), str(photos), "-o", str(tmp_path / name), "--num-workers", "3"]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_bits_have_the_order_of_the_evaluation(run_folder, photos, tmp_path):
    main(["encode", str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz")])
    content = read(tmp_path / "codes.npz")
    (words,) = pack_words(torch.from_numpy(signs(content)))  # 12 bits in a word of two bytes
    assert words.tobytes() == content["codes"].tobytes()


@pytest.mark.parametrize("what", ["empty folder", "missing", "empty list", "blank line"])
def test_no_image_found(what, run_folder, tmp_path, capsys):
    given = tmp_path / {"empty folder": "empty", "missing": "gone.jpg"}.get(what, "list.txt")
    if what == "empty folder":
        given.mkdir()
    elif what != "missing":
        given.write_text("" if what == "empty list" else "a.jpg\n\nb.jpg\n")
    assert main(["encode", str(run_folder), str(given), "-o", str(tmp_path / "codes.npz")]) == 2
    message = capsys.readouterr().err
    assert str(given) in message and message.count("\n") == 1
    assert not (tmp_path / "codes.npz").exists()


def test_damaged_images_are_named_and_left_out(run_folder, photos, tmp_path, capsys):
    good = find_images([str(photos)])
    (photos / "Äpfel" / "cut.jpg").write_bytes(Path(good[0]).read_bytes()[:300])
    (photos / "日本" / "text.png").write_text("no image")
    (tmp_path / "more.txt").write_text("gone.png\n")
    output = tmp_path / "codes.npz"
    assert main(["encode", str(run_folder), str(photos), str(tmp_path / "more.txt"), "-o", str(output)]) == 0
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
    main(["encode", str(run_folder), *good, "-o", str(tmp_path / "good.npz")])
    assert np.array_equal(read(output)["codes"], read(tmp_path / "good.npz")["codes"])


def test_a_pipe_and_a_large_image_are_left_out(run_folder, tmp_path, capsys):
    photo(1, 40, 30).save(tmp_path / "a.png")
    photo(1, 41, 30).save(tmp_path / "b.png")
    os.mkfifo(tmp_path / "pipe.png")
    command = ["encode", str(run_folder), str(tmp_path), str(tmp_path / "pipe.png"), "--max-pixels", "1200"]
    assert main([*command, "-o", str(tmp_path / "codes.npz")]) == 0
    assert list(read(tmp_path / "codes.npz")["names"]) == [str(tmp_path / "a.png")]
    error = capsys.readouterr().err
    assert "b.png: skipped (41 × 30 pixels are more than 1,200; make it smaller, or raise --max-pixels)" in error
    assert "pipe.png: skipped (not a file, but a folder, a pipe or a device)" in error


def test_no_image_can_be_read(run_folder, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert main(["encode", str(run_folder), str(tmp_path / "bad.png"), "-o", str(tmp_path / "codes.npz")]) == 2
    assert "None of the 1 images could be read" in capsys.readouterr().err
    assert not (tmp_path / "codes.npz").exists()


def test_a_name_that_is_not_unicode(run_folder, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        photo(1).save(name)
    except OSError:
        pytest.skip("this file system has Unicode names only")
    assert main(["encode", str(run_folder), str(tmp_path), "-o", str(tmp_path / "codes.npz")]) == 0
    assert list(read(tmp_path / "codes.npz")["names"]) == [name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "argument --batch-size: '0' must be a whole number, 1 or more"),
        (["--num-workers", "-1"], "argument --num-workers: '-1' must be a whole number, 0 or more"),
        (["--code-length", "0"], "argument --code-length: '0' must be a whole number, 1 or more"),
        (["--device", "tpu"], "--device tpu"),
        (["--export", "model.pt"], "unrecognized arguments: --export"),
        (["-o", "gone/codes.npz"], "there is no folder gone"),
        (["-o", "."], "is a folder"),
    ],
)
def test_bad_flags(flags, message, run_folder, photos, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["encode", str(run_folder), str(photos), *flags]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1


def test_flags_may_be_anywhere(run_folder, photos, tmp_path):
    one, two = find_images([str(photos)])[:2]
    output = str(tmp_path / "codes.npz")
    for line in (
        [str(run_folder), "-o", output, one, two],
        [str(run_folder), one, "-o", output, "--device", "cpu", two],
        ["--device", "cpu", str(run_folder), one, "-o", output, "--", two],
    ):
        assert main(["encode", *line]) == 0
        assert list(read(output)["names"]) == [one, two]
        Path(output).unlink()


def test_no_images_given(run_folder, capsys):
    assert main(["encode", str(run_folder)]) == 2
    assert "the following arguments are required: IMAGES" in capsys.readouterr().err


@pytest.mark.parametrize("export", [False, True])
def test_a_full_disk(export, run_folder, photos, tmp_path, capsys):
    """Files may have 100 bytes: the write fails, and the old file is unchanged."""
    output = tmp_path / "out"
    output.write_bytes(b"before")
    listing = sorted(os.listdir(tmp_path))
    command = ["export", str(run_folder)] if export else ["encode", str(run_folder), str(photos)]
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
def test_stopped(number, status, run_folder, photos, tmp_path, capsys, monkeypatch):
    prepared = search.encode.prepare_image

    def stop(*arguments):
        os.kill(os.getpid(), number)
        return prepared(*arguments)

    monkeypatch.setattr(search.encode, "prepare_image", stop)
    before, handler = sorted(os.listdir(tmp_path)), signal.getsignal(signal.SIGTERM)
    assert (
        main(["encode", str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz"), "--num-workers", "1"])
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
