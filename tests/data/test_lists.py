"""Your own images by lists."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from data import Options, hold_out, load_data
from tests import image_trees as trees
from tests.image_trees import save_photo, shows, write_lines
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


def tree_of_hashnet(root: Path, prefix: str = "") -> None:
    """Lists of 4 + 12 + 6 images of 3 labels; the training images are in the database, as in HashNet's lists."""
    rows = trees.label_rows(16, 3).tolist()
    lines = [f"{prefix}val2014/{number}.png {' '.join(map(str, rows[number]))}" for number in range(16)]
    for number in range(16):
        save_photo(root / "val2014" / f"{number}.png", number)
    write_lines(root / "test.txt", lines[:4])
    write_lines(root / "database.txt", lines[4:])
    write_lines(root / "train.txt", lines[14:8:-1])


@pytest.mark.parametrize("prefix", ["", "./", "./data/coco/", "/home/nobody/run/dataset/coco/"])
def test_the_lists_of_hashnet_need_only_the_root(tmp_path: Path, prefix: str) -> None:
    """test.txt are the queries, database.txt is searched, train.txt is the training pool (a part of the database)."""
    tree_of_hashnet(tmp_path, prefix)
    split = load_data("lists", tmp_path, Options(**SMALL))
    numbers = [[int(Path(path).stem) for path in part.paths] for part in (split.query, split.database, split.train)]
    assert numbers == [[0, 1, 2, 3], [*range(4, 16)], [14, 13, 12, 11, 10, 9]]
    assert split.separate is split.train and (split.num_classes, split.multi_label) == (3, True)
    assert split.train.labels.tolist() == trees.label_rows(16, 3)[14:8:-1].tolist()
    assert len(split.query.source) == 16  # an image of both lists is decoded once
    assert shows(split.query, 3, 3) and shows(split.train, 0, 14)


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    tree_of_hashnet(tmp_path)
    split = hold_out(load_data("lists", tmp_path, Options(**SMALL)), 6, seed=1)
    assert len(split.validation) == 6 and not set(split.validation.paths) & {*split.train.paths, *split.database.paths}
    assert 0 < len(split.train) < 6


def test_training_images_outside_the_database(tmp_path: Path) -> None:
    """As in the CIFAR-10 lists of DeepHash; and the whole database in another order is no pool of its own."""
    tree_of_hashnet(tmp_path)
    lines = (tmp_path / "database.txt").read_text().splitlines()
    write_lines(tmp_path / "database.txt", lines[:8])
    split = load_data("lists", tmp_path, Options(**SMALL))
    assert len(split.database) == 8 and sorted(set(split.train.paths) - set(split.database.paths)) == [
        f"val2014/{number}.png" for number in (12, 13, 14)
    ]
    assert split.train.labels.tolist() == trees.label_rows(16, 3)[14:8:-1].tolist()
    write_lines(tmp_path / "train.txt", lines[7::-1])
    assert load_data("lists", tmp_path, Options(**SMALL)).separate is None


def test_a_list_of_training_images_with_label_rows(tmp_path: Path) -> None:
    trees.lists_tree(tmp_path)
    names, labels = ((tmp_path / f"database_{what}.txt").read_text().splitlines() for what in ("img", "label"))
    write_lines(tmp_path / "train_img.txt", names[5:9])
    write_lines(tmp_path / "train_label.txt", labels[5:9])
    split = load_data("lists", tmp_path, Options(**SMALL))
    assert split.train.paths == names[5:9] and split.train.labels.equal(split.database.labels[5:9])
    (tmp_path / "train_img.txt").rename(tmp_path / "pool.txt")
    assert load_data("lists", tmp_path, Options(**SMALL)).separate is None
    assert load_data("lists", tmp_path, Options(train_img="pool.txt", **SMALL)).train.paths == names[5:9]
    write_lines(tmp_path / "train_label.txt", labels[5:8])
    with pytest.raises(UserError, match=r"pool\.txt has 4 images, .*train_label\.txt has 3 label rows"):
        load_data("lists", tmp_path, Options(train_img="pool.txt", **SMALL))


@pytest.mark.parametrize("blank", [" ", "\t", ",", ", ", "  \t"])
def test_labels_behind_the_names(tmp_path: Path, blank: str) -> None:
    trees.lists_tree(tmp_path)
    want = load_data("lists", tmp_path, Options(**SMALL))
    for part in ("database", "query"):
        names, rows = (tmp_path / f"{part}_{what}.txt" for what in ("img", "label"))
        lines = zip(names.read_text().splitlines(), rows.read_text().splitlines(), strict=True)
        write_lines(tmp_path / f"{part}.lst", [name + blank + row.replace(" ", blank) for name, row in lines])
        rows.unlink()
    split = load_data("lists", tmp_path, Options(database_img="database.lst", query_img="query.lst", **SMALL))
    assert split.query.paths == want.query.paths and split.query.labels.equal(want.query.labels)
    assert split.database.paths == want.database.paths and split.database.labels.equal(want.database.labels)


def test_class_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One number per image is its class, however large; only classes that occur become columns."""
    caplog.set_level("INFO")
    numbers = [7, 20_000_000_000, 0, 7, 0, 20_000_000_000]
    for number in range(6):
        save_photo(tmp_path / f"{number}.png", number)
    write_lines(tmp_path / "database.txt", [f"{number}.png {numbers[number]}" for number in range(4)])
    write_lines(tmp_path / "test.txt", [f"{number}.png,{numbers[number]}" for number in (4, 5)])
    split = load_data("lists", tmp_path, Options(**SMALL))
    assert split.database.labels.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert split.query.labels.tolist() == [[1, 0, 0], [0, 0, 1]] and split.class_names == ["0", "7", "20000000000"]
    assert "one number per image is its class number; 3 classes" in caplog.text
    # The same in label files, which used to be read as a single label.
    for part, rows in (("database", range(4)), ("query", (4, 5))):
        write_lines(tmp_path / f"{part}_img.txt", [f"{row}.png" for row in rows])
        write_lines(tmp_path / f"{part}_label.txt", [str(int(numbers[row] > 0)) for row in rows])
    write_lines(tmp_path / "concepts.txt", ["cat", "dog"])
    split = load_data("lists", tmp_path, Options(**SMALL))
    assert split.database.labels.tolist() == [[0, 1], [0, 1], [1, 0], [0, 1]] and split.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("database", "message"),
    [
        (["0.png 0 1", "1.png"], r"database\.txt, line 2 has no labels behind the name; add them"),
        (["0.png 0 1", "1.png 0 2"], r"database\.txt, line 2 has '2'; a label row is 0 and 1"),
        (["0.png 0 1", "1.png 0 1 1"], r"database\.txt, line 2 has 3 labels, line 1 has 2"),
        (["0.png 3", "1.png 0 1"], r"database\.txt, line 2 has '0 1', line 1 a single number"),
        (["0.png 3", "1.png 4"], r"database\.txt has 1 labels per row, .*test\.txt has 2; both need the same"),
    ],
)
def test_bad_labels_behind_the_names(tmp_path: Path, database: list[str], message: str) -> None:
    write_lines(tmp_path / "database.txt", database)
    write_lines(tmp_path / "test.txt", ["2.png 0 1"])
    with pytest.raises(UserError, match=message):
        load_data("lists", tmp_path, Options(**SMALL))


def test_images_that_are_query_and_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without --check, by their names."""
    trees.lists_tree(tmp_path)
    caplog.set_level(logging.WARNING)
    load_data("lists", tmp_path, Options(**SMALL))
    assert not caplog.text
    names = (tmp_path / "query_img.txt").read_text().splitlines()
    write_lines(tmp_path / "query_img.txt", ["./my images/3.png", "my images/4.png", *names[2:]])
    load_data("lists", tmp_path, Options(**SMALL))
    assert (
        "lists: 2 of 6 queries are in the database too, so that the metrics are too good: "
        "./my images/3.png, my images/4.png"
    ) in caplog.text
