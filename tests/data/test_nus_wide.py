"""NUS-WIDE: protocols and the authors' formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data import Options, load_data
from tests import image_trees as trees
from tests.image_trees import ids, shows
from utils.errors import UserError

SMALL = {"image_size": 32}


@pytest.mark.parametrize("prefix", ["images/", ""])
@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n"])
def test_nus_wide_tc21(tmp_path: Path, prefix: str, slash: str, end: str) -> None:
    trees.nus_wide_tc21_tree(tmp_path, prefix=prefix, slash=slash, end=end)
    split = load_data("nus-wide-tc21", tmp_path, Options(**SMALL))
    assert (len(split.query), len(split.database), split.num_classes, split.multi_label) == (6, 30, 21, True)
    assert split.query.paths[0] == "images/actor/0030_2124494179.jpg"
    assert torch.equal(split.database.labels, torch.from_numpy(trees.label_rows(30, 21, 0)).float())
    assert torch.equal(split.query.labels, torch.from_numpy(trees.label_rows(6, 21, 30)).float())
    assert shows(split.database, 4, 4) and shows(split.query, 2, 32) and not shows(split.query, 2, 33)
    half = load_data("nus-wide-tc21", tmp_path, Options(num_query=3, seed=1, **SMALL))
    assert len(half.query) == 3 and len(half.database) == 30


@pytest.mark.parametrize("prefix", ["images/", ""])
def test_nus_wide_tc10(tmp_path: Path, prefix: str) -> None:
    trees.nus_wide_tc10_tree(tmp_path, prefix=prefix)
    split = load_data("nus-wide-tc10", tmp_path, Options(num_query=5, seed=1, **SMALL))
    assert (len(split.query), len(split.database), split.num_classes) == (5, 25, 10)
    rows = trees.label_rows(30, 10)
    for half in (split.query, split.database):
        for position, path in enumerate(half.paths):
            number = int(path.removeprefix("images/")[:4])
            assert half.labels[position].tolist() == rows[number].tolist() and shows(half, position, number)
    other = load_data("nus-wide-tc10", tmp_path, Options(num_query=5, seed=2, **SMALL))
    assert other.query.paths != split.query.paths and ids(other) == ids(split)
    with pytest.raises(UserError, match=r"nus-wide-tc10: 5000 queries of 30 images leave no database"):
        load_data("nus-wide-tc10", tmp_path, Options(**SMALL))
    with pytest.raises(UserError, match="30 queries of 30 images leave no database"):
        load_data("nus-wide-tc10", tmp_path, Options(num_query=30, **SMALL))


def test_a_list_is_missing(tmp_path: Path) -> None:
    trees.nus_wide_tc21_tree(tmp_path)
    (tmp_path / "NUS-WIDE" / "test_img.txt").unlink()
    with pytest.raises(UserError, match=r"test_img\.txt is missing; .*prepare_nus_wide"):
        load_data("nus-wide-tc21", tmp_path, Options())
