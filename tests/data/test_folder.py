"""Your own images in class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import Options, load_data
from data.folder import query_counts
from tests import image_trees as trees
from tests.image_trees import ids
from utils.errors import UserError

SMALL = {"image_size": 32}


def test_folder(tmp_path: Path) -> None:
    """Class folders with spaces and non-ASCII names, many kinds of image, other files beside them."""
    classes = trees.folder_tree(tmp_path)
    (tmp_path / classes[0] / "notes.txt").write_text("no image")
    (tmp_path / classes[0] / ".hidden.jpg").write_bytes(b"no image")
    (tmp_path / ".git").mkdir()
    trees.save_photo(tmp_path / classes[1] / "more" / "deep.JPEG", 999)
    split = load_data("folder", tmp_path, Options(**SMALL))
    assert split.class_names == classes and split.num_classes == 3 and not split.multi_label
    assert len(split.database) == 28 and split.query.labels.sum(0).tolist() == [1, 1, 1]
    for half in (split.query, split.database):
        assert all(
            path.split("/")[0] == classes[int(label.argmax())]
            for path, label in zip(half.paths, half.labels, strict=True)
        )
    assert f"{classes[1]}/more/deep.JPEG" in ids(split)
    share = load_data("folder", tmp_path, Options(query_share=0.3, **SMALL))
    assert share.query.labels.sum(0).tolist() == [3, 3, 3]
    number = load_data("folder", tmp_path, Options(num_query=7, **SMALL))
    assert len(number.query) == 7 and len(number.database) == 24


def test_folder_shares() -> None:
    assert query_counts(np.array([10, 25, 5]), None, 0.1) == [1, 2, 1]
    assert query_counts(np.array([10, 20, 30]), 6, 0.1) == [1, 2, 3]
    assert query_counts(np.array([10, 10, 10]), 4, 0.1) == [2, 1, 1]
    for total in range(1, 40):
        counts = query_counts(np.array([7, 11, 23]), total, 0.1)
        assert sum(counts) == total and all(
            abs(c - total * n / 41) < 1 for c, n in zip(counts, (7, 11, 23), strict=True)
        )


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folders"):
        load_data("folder", tmp_path, Options())
    with pytest.raises(UserError, match="none cannot be read"):
        load_data("folder", tmp_path / "none", Options())
    trees.save_photo(tmp_path / "cat" / "one.png", 1)
    with pytest.raises(UserError, match="class cat has 1 images, so that 1 queries leave none"):
        load_data("folder", tmp_path, Options())
    with pytest.raises(UserError, match="--query-share must be above 0"):
        load_data("folder", tmp_path, Options(query_share=1))
    with pytest.raises(UserError, match="--num-query 5 leaves no database"):
        load_data("folder", tmp_path, Options(num_query=5))


def test_protocols_of_the_literature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """59,000 + 1,000, 54,000 + 5,000 + 1,000 and 50,000 + 10,000 images, here 1/500 of them."""
    for label in "abcdefghij":
        for number in range(12):
            trees.save_photo(tmp_path / label / f"{number}.png", number, 20, 20)
    monkeypatch.setattr("data.datasets.NUM_TRAIN", 10)
    pool = load_data("folder", tmp_path, Options(seed=3, num_query=20, cache="off"))
    assert pool.train is pool.database and (len(pool.query), len(pool.database)) == (20, 100)
    split = load_data("folder", tmp_path, Options(seed=3, num_query=20, cache="off", protocol="train-5000"))
    assert (len(split.query), len(split.train), len(split.database)) == (20, 10, 90)
    assert split.train.labels.sum(0).tolist() == [1] * 10 and split.query.paths == pool.query.paths
    assert sorted(split.train.paths + split.database.paths) == sorted(pool.database.paths)
    again = load_data("folder", tmp_path, Options(seed=3, num_query=20, cache="off", protocol="train-5000"))
    other = load_data("folder", tmp_path, Options(seed=4, num_query=20, cache="off", protocol="train-5000"))
    assert again.train.paths == split.train.paths != other.train.paths
    with pytest.raises(UserError, match="10000 leaves no database"):
        load_data("folder", tmp_path, Options(cache="off", protocol="test-10000"))
    monkeypatch.setattr("data.datasets.NUM_TRAIN", 15)
    with pytest.raises(UserError, match="15 is not a multiple of the 10 classes"):
        load_data("folder", tmp_path, Options(num_query=20, cache="off", protocol="train-5000"))
    with pytest.raises(UserError, match="--protocol is an option of the datasets cifar-10 and folder"):
        load_data("digits", tmp_path, Options(protocol="train-5000"))
    with pytest.raises(UserError, match="--protocol must be one of pool, train-5000, test-10000"):
        Options(protocol="59000")
