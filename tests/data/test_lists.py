"""Your own images by lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import Options, load_data
from tests import image_trees as trees
from tests.image_trees import shows
from utils.errors import UserError

SMALL = {"image_size": 32}


def test_lists(tmp_path: Path) -> None:
    trees.lists_tree(tmp_path)
    split = load_data("lists", tmp_path, Options(**SMALL))
    assert (len(split.query), len(split.database), split.num_classes, split.multi_label) == (6, 24, 5, True)
    assert split.class_names is None and split.query.paths[0] == "my images/24.png" and shows(split.query, 0, 24)
    trees.write_lines(tmp_path / "concepts.txt", ["a", "b", "c", "d", "e"])
    assert load_data("lists", tmp_path, Options(num_query=2, **SMALL)).class_names == ["a", "b", "c", "d", "e"]


def test_lists_elsewhere_and_absolute(tmp_path: Path) -> None:
    trees.lists_tree(tmp_path / "one")
    root = tmp_path / "two"
    root.mkdir()
    names = [str(tmp_path / "one" / "my images" / f"{index}.png") for index in range(5)]
    trees.write_lines(root / "d.txt", names)
    trees.write_rows(tmp_path / "labels.txt", np.eye(5, dtype=int))
    files = {"database_img": "d.txt", "database_label": str(tmp_path / "labels.txt")}
    files |= {"query_img": "d.txt", "query_label": str(tmp_path / "labels.txt")}
    split = load_data("lists", root, Options(**files, **SMALL))
    assert split.database.paths == names and not split.multi_label and shows(split.query, 3, 3)
    with pytest.raises(UserError, match=r"database_img\.txt is missing"):
        load_data("lists", root, Options())
    trees.write_rows(root / "wide.txt", np.eye(5, 6, dtype=int))
    with pytest.raises(UserError, match=r"has 5 labels per row, .*wide\.txt has 6"):
        load_data("lists", root, Options(**(files | {"query_label": "wide.txt"})))
