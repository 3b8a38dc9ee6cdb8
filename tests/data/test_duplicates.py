"""Images that are both query and database."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import Options, load_data
from data.duplicates import find_duplicates
from tests import image_trees as trees

SMALL = {"image_size": 32}


def test_duplicates_are_reported_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees.lists_tree(tmp_path)
    images = tmp_path / "my images"
    (images / "29.png").write_bytes((images / "3.png").read_bytes())
    load_data("lists", tmp_path, Options(**SMALL))
    assert "in the database too" not in caplog.text
    load_data("lists", tmp_path, Options(check=True, **SMALL))
    assert "lists: 1 of 6 queries are in the database too: my images/29.png = my images/3.png" in caplog.text


def test_duplicates_of_pixels_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.cifar10_tree(tmp_path)
    trees.trust_cifar10(tmp_path, monkeypatch)
    split = load_data("cifar-10", tmp_path, Options(num_query=10, check=True))
    assert find_duplicates(split) == []
    source = split.query.source
    source.pixels[int(split.query.rows[4])] = source.pixels[int(split.database.rows[9])]
    assert find_duplicates(split, threads=2) == [(4, 9)]
