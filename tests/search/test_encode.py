"""Images as the network sees them, and codes that depend on nothing else."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import search.encode
from data import Options, load_data
from data.data_loader import eval_batches
from data.decode import decode
from data.prepare import prepare_image
from data.windows import PIXEL_BIAS, PIXEL_SCALE, eval_image
from dataset import export_digits
from search.encode import Encoding, encode_files
from search.model import Model
from tests.data.test_windows import with_avx
from tests.image_trees import photo, save_photo
from tests.search.tiny_model import SIZE


def normalised(image):
    """float32 [3, S, S] as the loader gives the network, from uint8 [S, S, 3]."""
    result = image.transpose(2, 0, 1).astype(np.float32)
    result *= PIXEL_SCALE[:, None, None]
    result += PIXEL_BIAS[:, None, None]
    return torch.from_numpy(result)


@with_avx
def test_an_image_is_prepared_as_by_the_loader_of_a_dataset(photos, model_file):
    model = Model.load(model_file)
    save_photo(photos / "Äpfel" / "tall.png", 5, 40, 90)
    rotated = photo(6, 90, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated.save(photos / "Äpfel" / "turned.jpg", exif=exif)
    photo(7).convert("CMYK").save(photos / "Äpfel" / "cmyk.tif")
    split = load_data("folder", photos, Options(image_size=SIZE, cache="off", num_workers=1))
    seen = 0
    for half in (split.query, split.database):
        images = torch.cat([images for images, _, _ in eval_batches(half, batch_size=8)])
        for name, image in zip(half.paths, images, strict=True):
            assert torch.equal(normalised(prepare_image(photos / name, model.image_size, model.shorter_side)), image)
            seen += 1
    assert seen == 33


def test_digits_are_seen_whole(tmp_path, model_file):
    split = load_data("digits", tmp_path, Options(image_size=SIZE))
    model = Model.load(model_file)
    model.settings["dataset"] = "digits"
    assert model.shorter_side == split.query.shorter_side == SIZE
    pixels = split.query.pixels([3])[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    assert torch.equal(
        normalised(prepare_image(tmp_path / "digit.png", model.image_size, model.shorter_side)), split.query[3][0]
    )


@pytest.mark.parametrize("batch_size", [1, 5, 13, 64])
def test_batches_and_unreadable_images(batch_size, model_file, tmp_path):
    """Codes do not depend on the batch; names and reasons come in order; an image that is left out moves no other."""
    paths = [str(tmp_path / f"{number}.png") for number in range(13)]
    for number, path in enumerate(paths):
        photo(number).save(path)
    model = Model.load(model_file)
    alone = np.concatenate(
        [model.codes(prepare_image(path, model.image_size, model.shorter_side)[None]) for path in paths]
    )
    damaged = [0, 3, 4, 5, 6, 7, 10]
    for number in damaged:
        Path(paths[number]).write_text("no image")
    batches = list(encode_files(model, paths, Encoding(batch_size)))
    assert all(len(names) == len(codes) <= batch_size for names, codes, _ in batches)
    unreadable = [name for _, _, others in batches for name, reason in others if reason]
    assert unreadable == [paths[number] for number in damaged]
    assert [name for names, _, _ in batches for name in names] == [path for path in paths if path not in unreadable]
    assert np.array_equal(np.concatenate([codes for _, codes, _ in batches]), np.delete(alone, damaged, axis=0))


def test_few_images_are_read_ahead(model_file, tmp_path, monkeypatch):
    """A consumer that stops after the first batch has not caused the whole list to be read."""
    save_photo(tmp_path / "a.png", 1)
    count, lock = 0, threading.Lock()
    prepared = search.encode.prepare_image

    def counting(*arguments):
        nonlocal count
        with lock:
            count += 1
        return prepared(*arguments)

    monkeypatch.setattr(search.encode, "prepare_image", counting)
    paths = (str(tmp_path / "a.png") for _ in range(10_000))
    batches = encode_files(Model.load(model_file), paths, Encoding(4, num_workers=2))
    names, codes, _ = next(batches)
    assert (len(names), codes.shape) == (4, (4, 2))
    batches.close()
    assert 4 <= count <= 4 * (1 + 2 * 2)


def test_bad_images_are_named_on_stderr(model_file, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    [(names, codes, unreadable)] = encode_files(Model.load(model_file), [str(tmp_path / "bad.png")])
    assert names == [] and codes.shape == (0, 2) and len(unreadable) == 1
    assert "bad.png: skipped (" in capsys.readouterr().err


def test_exported_digits_are_what_a_run_sees(tmp_path, capsys):
    assert export_digits.main([str(tmp_path / "all")]) == 0
    assert "1,797 images of 10 classes" in capsys.readouterr().out
    split = load_data("digits", tmp_path, Options(seed=5))
    halves = {}
    for part, half in (("query", split.query), ("database", split.database)):
        assert export_digits.main([str(tmp_path / part), "--part", part, "--seed", "5"]) == 0
        halves[part] = {path.relative_to(tmp_path / part) for path in (tmp_path / part).rglob("*.png")}
        for place in (0, 7, len(half) - 1):
            label = int(half.labels[place].argmax())
            path = tmp_path / "all" / str(label) / f"{half.rows[place]:04d}.png"
            assert path.relative_to(tmp_path / "all") in halves[part]
            assert torch.equal(normalised(eval_image(decode(path, 64), 64, 64)), half[place][0])
    assert len(halves["query"]) == 300 and len(halves["database"]) == 1497
    assert halves["query"] | halves["database"] == {
        path.relative_to(tmp_path / "all") for path in (tmp_path / "all").rglob("*.png")
    }
    (tmp_path / "file").write_text("")
    assert export_digits.main([str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err
