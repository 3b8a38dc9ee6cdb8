"""Missing and damaged images: refused, or left out on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from data import Options, load_data
from data.data_loader import train_batches
from tests import image_trees as trees
from utils.errors import UserError

SMALL = {"image_size": 32}


@pytest.mark.parametrize("cache", ["on", "off"])
def test_missing_images(tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    trees.flickr_tree(tmp_path)
    options = {"num_query": 5, "cache": cache, **SMALL}
    whole = load_data("flickr25k", tmp_path, Options(**options))
    for number in range(1, 13):
        (tmp_path / "Flickr" / "mirflickr" / f"im{number}.jpg").unlink()
    with pytest.raises(UserError) as caught:
        load_data("flickr25k", tmp_path, Options(**options))
    message = str(caught.value)
    assert "12 of 30 images" in message and "mirflickr/im10.jpg (missing) and 2 more" in message
    assert "im11" not in message and "--on-bad-image skip" in message
    split = load_data("flickr25k", tmp_path, Options(on_bad_image="skip", **options))
    assert "12 of 30 images" in caplog.text and "left out" in caplog.text
    # Who is left stays on its side.
    gone = {f"mirflickr/im{number}.jpg" for number in range(1, 13)}
    assert split.query.paths == [path for path in whole.query.paths if path not in gone]
    assert split.database.paths == [path for path in whole.database.paths if path not in gone]
    assert len(split.database.labels) == len(split.database)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_no_image_at_all(tmp_path: Path, on_bad_image: str) -> None:
    trees.lists_tree(tmp_path)
    (tmp_path / "my images").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"30 of 30 images .* Is this the right folder"):
        load_data("lists", tmp_path, Options(on_bad_image=on_bad_image))


@pytest.mark.parametrize("cache", ["on", "off"])
def test_damaged_images(tmp_path: Path, cache: str, caplog: pytest.LogCaptureFixture) -> None:
    trees.lists_tree(tmp_path)
    options = {"cache": cache, **SMALL}
    path = tmp_path / "my images" / "7.png"
    good = path.read_bytes()
    path.write_bytes(good[:200])
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError, match=r"1 of 30 images .*my images/7\.png \(.*\)\. Replace them, or leave"):
            load_data("lists", tmp_path, Options(**options))
    split = load_data("lists", tmp_path, Options(on_bad_image="skip", **options))
    assert len(split.database) == 23 and "my images/7.png" not in split.database.paths and "7.png" in caplog.text
    for images, _, _ in train_batches(split.database, range(23), batch_size=8, key=(1,), augment="crop-flip"):
        assert torch.isfinite(images).all()
    path.write_bytes(good)
    assert len(load_data("lists", tmp_path, Options(**options)).database) == 24


@pytest.mark.parametrize("cache", ["on", "off"])
def test_a_pipe_among_the_images(tmp_path: Path, cache: str) -> None:
    """Opening it would wait for ever."""
    trees.lists_tree(tmp_path)
    (tmp_path / "my images" / "7.png").unlink()
    os.mkfifo(tmp_path / "my images" / "7.png")
    with pytest.raises(UserError, match=r"my images/7\.png \(not a file, but a folder, a pipe or a device\)\. Replace"):
        load_data("lists", tmp_path, Options(cache=cache, **SMALL))


def test_an_image_with_more_pixels_than_allowed(tmp_path: Path) -> None:
    trees.lists_tree(tmp_path)
    trees.save_photo(tmp_path / "my images" / "7.png", 7, 60, 46)
    reason = (
        r"my images/7\.png \(60 × 46 pixels are more than 2,700; make it smaller, or raise --max-pixels\)\. Replace"
    )
    with pytest.raises(UserError, match=reason):
        load_data("lists", tmp_path, Options(max_pixels=2700, **SMALL))
    assert len(load_data("lists", tmp_path, Options(max_pixels=2760, **SMALL)).database) == 24


def test_a_half_without_images(tmp_path: Path) -> None:
    trees.lists_tree(tmp_path)
    for index in range(24, 30):
        (tmp_path / "my images" / f"{index}.png").write_bytes(b"")
    with pytest.raises(UserError, match="lists: no query image can be read"):
        load_data("lists", tmp_path, Options(on_bad_image="skip", **SMALL))
