"""Names of datasets, and datasets that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import DATASETS, Options, load_data
from utils.errors import UserError


def test_names() -> None:
    assert list(DATASETS) == [
        *("cifar-10", "nus-wide-tc21", "nus-wide-tc10", "flickr25k", "imagenet", "digits", "folder", "lists")
    ]


def test_unknown_datasets() -> None:
    with pytest.raises(UserError, match="There is no dataset 'flicker25k': did you mean flickr25k"):
        load_data("flicker25k", "x", Options())
    with pytest.raises(UserError, match="Choose from cifar-10, nus-wide-tc21"):
        load_data("zzz", "x", Options())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nus-wide-tc21", r"NUS-WIDE \(21 concepts\) is not in .*database_img\.txt does not exist"),
        ("nus-wide-tc10", r"NUS-WIDE \(10 concepts\) is not in .*img_tc10\.txt does not exist"),
        ("flickr25k", r"MIR-Flickr 25K is not in .*db_image\.txt does not exist"),
        ("imagenet", "ImageNet is not in .*train does not exist"),
        ("lists", r"database_img\.txt is missing"),
    ],
)
def test_nothing_there(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(name, tmp_path, Options())
