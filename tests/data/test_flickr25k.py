"""MIR-Flickr 25K: protocol and the authors' formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import Options, load_data
from tests import image_trees as trees
from tests.image_trees import ids, shows
from utils.errors import UserError

SMALL = {"image_size": 32}


@pytest.mark.parametrize("width", [24, 38])
@pytest.mark.parametrize("prefix", ["mirflickr/", ""])
def test_flickr25k(tmp_path: Path, width: int, prefix: str) -> None:
    trees.flickr_tree(tmp_path, width=width, prefix=prefix, end="\r\n")
    split = load_data("flickr25k", tmp_path, Options(num_query=5, **SMALL))
    assert (len(split.query), len(split.database), split.num_classes, split.multi_label) == (5, 25, width, True)
    assert ids(split) == {f"mirflickr/im{number}.jpg" for number in range(1, 31)}
    rows = trees.label_rows(30, width, empty=1)
    for position, path in enumerate(split.database.paths):
        number = int(path.removeprefix("mirflickr/im").removesuffix(".jpg"))
        assert split.database.labels[position].tolist() == rows[number - 1].tolist()
        assert shows(split.database, position, number - 1)
    given = load_data("flickr25k", tmp_path, Options(split="lists", **SMALL))
    assert given.query.paths == [f"mirflickr/im{number}.jpg" for number in range(25, 31)]
    assert given.query.labels[-1].sum() == 0  # an image without any label stays
    with pytest.raises(UserError, match=r"--num-query 7: the query list of flickr25k has only 6 images"):
        load_data("flickr25k", tmp_path, Options(split="lists", num_query=7, **SMALL))


def test_flickr25k_widths_must_agree(tmp_path: Path) -> None:
    trees.flickr_tree(tmp_path)
    trees.write_rows(tmp_path / "Flickr" / "test_label.txt", trees.label_rows(6, 24))
    with pytest.raises(UserError, match=r"database_label\.txt has 38 labels per row, .*test_label\.txt has 24"):
        load_data("flickr25k", tmp_path, Options(**SMALL))
    trees.write_rows(tmp_path / "Flickr" / "test_label.txt", trees.label_rows(6, 25))
    with pytest.raises(UserError, match=r"test_label\.txt, line 1 has 25 labels; this dataset has 24 or 38"):
        load_data("flickr25k", tmp_path, Options(**SMALL))


def test_the_datasets_folder_itself_may_be_the_root(tmp_path: Path) -> None:
    trees.flickr_tree(tmp_path)
    assert len(load_data("flickr25k", tmp_path / "Flickr", Options(num_query=5, **SMALL)).query) == 5
