"""Every dataset of image files: protocol, the authors' formats, and what is said where something does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DATASETS, Options, load_data
from data.folder import query_counts
from tests import image_trees as trees
from utils.errors import UserError

SMALL = {"image_size": 32}


def ids(split) -> set[str]:
    return {*split.query.paths, *split.database.paths}


def shows(dataset, row: int, seed: int) -> bool:
    """Whether the dataset's row holds the picture that the tree made from `seed`."""
    got = dataset.pixels([row])[0].permute(1, 2, 0).float()
    side = got.shape[0]
    want = trees.photo(seed).resize((int(side * 60 / 45), side), Image.Resampling.BILINEAR)
    return (got - torch.from_numpy(np.asarray(want).copy())).abs().mean().item() < 6


def test_names() -> None:
    assert list(DATASETS) == [
        *("cifar-10", "nus-wide-tc21", "nus-wide-tc10", "flickr25k", "imagenet", "digits", "folder", "lists")
    ]


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
    with pytest.raises(UserError, match=r"nus-wide-tc10: 5000 queries leave no database, there are 30 images"):
        load_data("nus-wide-tc10", tmp_path, Options(**SMALL))


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
    with pytest.raises(UserError, match=r"--num-query 7, but the query list has 6"):
        load_data("flickr25k", tmp_path, Options(split="lists", num_query=7, **SMALL))


def test_flickr25k_widths_must_agree(tmp_path: Path) -> None:
    trees.flickr_tree(tmp_path)
    trees.write_rows(tmp_path / "Flickr" / "test_label.txt", trees.label_rows(6, 24))
    with pytest.raises(UserError, match=r"database_label\.txt has 38 labels a row, .*test_label\.txt has 24"):
        load_data("flickr25k", tmp_path, Options(**SMALL))
    trees.write_rows(tmp_path / "Flickr" / "test_label.txt", trees.label_rows(6, 25))
    with pytest.raises(UserError, match=r"test_label\.txt, line 1 has 25 labels; this dataset has 24 or 38"):
        load_data("flickr25k", tmp_path, Options(**SMALL))


def test_the_datasets_folder_itself_may_be_the_root(tmp_path: Path) -> None:
    trees.flickr_tree(tmp_path)
    assert len(load_data("flickr25k", tmp_path / "Flickr", Options(num_query=5, **SMALL)).query) == 5


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
    with pytest.raises(UserError, match="takes 4 images a class"):
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
    with pytest.raises(UserError, match=r"Class n99 is in .*val and not in .*train"):
        load_data("imagenet", tmp_path, Options())
    (tmp_path / "train" / "n99").mkdir()
    with pytest.raises(UserError, match="n99 holds no image"):
        load_data("imagenet", tmp_path, Options())
    (tmp_path / "other" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="val is missing"):
        load_data("imagenet", tmp_path / "other", Options())


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
    with pytest.raises(UserError, match="holds no folders"):
        load_data("folder", tmp_path, Options())
    with pytest.raises(UserError, match="none cannot be read"):
        load_data("folder", tmp_path / "none", Options())
    trees.save_photo(tmp_path / "cat" / "one.png", 1)
    with pytest.raises(UserError, match="class cat has 1 images, 1 queries of it would leave none"):
        load_data("folder", tmp_path, Options())
    with pytest.raises(UserError, match="query_share must be above 0"):
        load_data("folder", tmp_path, Options(query_share=1))
    with pytest.raises(UserError, match="--num-query 5 leaves no database"):
        load_data("folder", tmp_path, Options(num_query=5))


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
    files |= {"query_img": Path("d.txt"), "query_label": tmp_path / "labels.txt"}
    split = load_data("lists", root, Options(**files, **SMALL))
    assert split.database.paths == names and not split.multi_label and shows(split.query, 3, 3)
    with pytest.raises(UserError, match=r"database_img\.txt is missing"):
        load_data("lists", root, Options())
    trees.write_rows(root / "wide.txt", np.eye(5, 6, dtype=int))
    with pytest.raises(UserError, match=r"has 5 labels a row, .*wide\.txt has 6"):
        load_data("lists", root, Options(**(files | {"query_label": "wide.txt"})))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nus-wide-tc21", r"NUS-WIDE \(21 concepts\) is not below .*database_img\.txt does not exist"),
        ("nus-wide-tc10", r"NUS-WIDE \(10 concepts\) is not below .*img_tc10\.txt does not exist"),
        ("flickr25k", r"MIR-Flickr 25K is not below .*db_image\.txt does not exist"),
        ("imagenet", "ImageNet is not below .*train does not exist"),
        ("lists", r"database_img\.txt is missing"),
    ],
)
def test_nothing_there(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(name, tmp_path, Options())


def test_a_list_is_missing(tmp_path: Path) -> None:
    trees.nus_wide_tc21_tree(tmp_path)
    (tmp_path / "NUS-WIDE" / "test_img.txt").unlink()
    with pytest.raises(UserError, match=r"test_img\.txt is missing: .*prepare_nus_wide"):
        load_data("nus-wide-tc21", tmp_path, Options())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sed": 1}, "has no option 'sed': did you mean seed"),
        ({"query_share": 0.2}, "Dataset lists has no option 'query_share'"),
        ({"split": "lists"}, "leave --split out, it belongs to flickr25k"),
        ({"split": "other"}, "split must be left out or be lists"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, not -1"),
        ({"num_query": 0}, "num_query must be a whole number, 1 or more, not 0"),
        ({"num_query": True}, "num_query must be"),
        ({"image_size": 7}, "image_size must be a whole number, 8 or more"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be error or skip"),
        ({"cache": 3}, "cache must be on, off or a folder"),
        ({"num_workers": 1.5}, "num_workers must be a whole number"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data("lists", tmp_path, Options(**options))


def test_unknown_datasets() -> None:
    with pytest.raises(UserError, match="There is no dataset 'flicker25k': did you mean flickr25k"):
        load_data("flicker25k", "x", Options())
    with pytest.raises(UserError, match="Choose from cifar-10, nus-wide-tc21"):
        load_data("zzz", "x", Options())


@pytest.mark.parametrize("cache", [True, False])
def test_missing_images(tmp_path: Path, cache: bool, caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.mark.parametrize("cache", [True, False])
def test_damaged_images(tmp_path: Path, cache: bool, caplog: pytest.LogCaptureFixture) -> None:
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
    from data.data_loader import train_batches

    for images, _, _ in train_batches(split.database, range(23), batch_size=8, key=(1,), augment="crop-flip"):
        assert torch.isfinite(images).all()
    path.write_bytes(good)
    assert len(load_data("lists", tmp_path, Options(**options)).database) == 24


def test_a_half_without_images(tmp_path: Path) -> None:
    trees.lists_tree(tmp_path)
    for index in range(24, 30):
        (tmp_path / "my images" / f"{index}.png").write_bytes(b"")
    with pytest.raises(UserError, match="lists: no query image can be read"):
        load_data("lists", tmp_path, Options(on_bad_image="skip", **SMALL))


def test_duplicates_are_reported_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees.lists_tree(tmp_path)
    images = tmp_path / "my images"
    (images / "29.png").write_bytes((images / "3.png").read_bytes())
    load_data("lists", tmp_path, Options(**SMALL))
    assert "in the database too" not in caplog.text
    load_data("lists", tmp_path, Options(check=True, **SMALL))
    assert "lists: 1 of 6 queries are in the database too: my images/29.png = my images/3.png" in caplog.text


def test_duplicates_of_pixels_in_memory(tmp_path: Path) -> None:
    from data.duplicates import find_duplicates

    trees.cifar10_tree(tmp_path)
    split = load_data("cifar-10", tmp_path, Options(num_query=10, check=True))
    assert find_duplicates(split) == []
    source = split.query.source
    source.pixels[int(split.query.rows[4])] = source.pixels[int(split.database.rows[9])]
    assert find_duplicates(split, threads=2) == [(4, 9)]
