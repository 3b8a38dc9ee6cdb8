"""ImageNet: protocol, and folders that do not match."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import Options, load_data
from tests import image_trees as trees
from utils.errors import UserError

SMALL = {"image_size": 32}


@pytest.mark.parametrize("below", [".", "imagenet"])
def test_imagenet(tmp_path: Path, below: str) -> None:
    classes = trees.imagenet_tree(tmp_path / below)
    split = load_data("imagenet", tmp_path, Options(**SMALL))
    assert (len(split.query), len(split.database), split.num_classes, split.multi_label) == (9, 24, 3, False)
    assert split.class_names == classes
    for half in (split.query, split.database):
        for path, label in zip(half.paths, half.labels, strict=True):
            assert path.split("/")[1] == classes[int(label.argmax())] and label.sum() == 1
    fewer = load_data("imagenet", tmp_path, Options(num_query=6, seed=3, **SMALL))
    assert fewer.query.labels.sum(0).tolist() == [2, 2, 2] and len(fewer.database) == 24
    with pytest.raises(UserError, match="takes 4 images per class"):
        load_data("imagenet", tmp_path, Options(num_query=12, **SMALL))
    with pytest.raises(UserError, match="not a multiple of the 3 classes"):
        load_data("imagenet", tmp_path, Options(num_query=10, **SMALL))


def test_imagenet_takes_50_a_class(tmp_path: Path) -> None:
    trees.imagenet_tree(tmp_path, train=2, val=53)
    one, two = (load_data("imagenet", tmp_path, Options(seed=seed, image_size=8)) for seed in (1, 2))
    assert one.query.labels.sum(0).tolist() == [50, 50, 50] and one.query.paths != two.query.paths


def test_imagenet_folders_must_agree(tmp_path: Path) -> None:
    trees.imagenet_tree(tmp_path)
    (tmp_path / "val" / "n99").mkdir()
    with pytest.raises(UserError, match=r"Class n99 is in .*val but not in .*train"):
        load_data("imagenet", tmp_path, Options())
    (tmp_path / "train" / "n99").mkdir()
    with pytest.raises(UserError, match="n99 has no images"):
        load_data("imagenet", tmp_path, Options())
    (tmp_path / "other" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="val is missing"):
        load_data("imagenet", tmp_path / "other", Options())
