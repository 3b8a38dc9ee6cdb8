"""Options: allowed values, and options of another dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import DATASETS, Options, load_data
from data.options import ONLY_FOR
from tests import image_trees as trees
from utils.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "other"}, "--split must be lists, or be left out, not 'other'"),
        ({"seed": -1}, "--seed must be a whole number, 0 or more, not -1"),
        ({"seed": None}, "--seed must be a whole number, 0 or more, not None"),
        ({"num_query": 0}, "--num-query must be a whole number, 1 or more, not 0"),
        ({"num_query": True}, "--num-query must be"),
        ({"image_size": 7}, "--image-size must be a whole number, 8 or more"),
        ({"on_bad_image": "ignore"}, "--on-bad-image must be error or skip"),
        ({"max_pixels": 0}, "--max-pixels must be a whole number, 1 or more, not 0"),
        ({"cache": 3}, "--cache must be on, off or a folder"),
        ({"cache": ""}, "--cache must be on, off or a folder"),
        ({"num_workers": 1.5}, "--num-workers must be a whole number"),
        ({"query_share": 0}, "--query-share must be above 0 and below 1, not 0"),
        ({"query_share": 1.0}, "--query-share must be above 0 and below 1, not 1.0"),
    ],
)
def test_wrong_values(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_unknown_options() -> None:
    with pytest.raises(TypeError, match="sed"):
        Options(sed=1)


@pytest.mark.parametrize("option", ONLY_FOR)
@pytest.mark.parametrize("dataset", DATASETS)
def test_options_of_another_dataset(tmp_path: Path, dataset: str, option: str) -> None:
    """Refused before anything is read, with one sentence that names the flag and its dataset."""
    options = Options(
        **{option: {"split": "lists", "query_share": 0.2, "protocol": "train-5000"}.get(option, "list.txt")}
    )
    if dataset in ONLY_FOR[option]:
        options.require_fitting(dataset)
        return
    with pytest.raises(UserError) as caught:
        load_data(dataset, tmp_path, options)
    flag = "--" + option.replace("_", "-")
    owners = {"protocol": "datasets cifar-10 and folder", "split": "dataset flickr25k", "query_share": "dataset folder"}
    assert str(caught.value) == f"{flag} is an option of the {owners.get(option, 'dataset lists')}; leave it out."


@pytest.mark.parametrize("option", ["database_img", "database_label", "query_img", "query_label"])
def test_names_of_the_list_files(tmp_path: Path, option: str) -> None:
    """Each file under another name, in the root folder or anywhere."""
    trees.lists_tree(tmp_path)
    want = load_data("lists", tmp_path, Options(image_size=32))
    (tmp_path / "else").mkdir()
    (tmp_path / f"{option}.txt").rename(tmp_path / "else" / "renamed.txt")
    with pytest.raises(UserError, match=rf"{option}\.txt is missing"):
        load_data("lists", tmp_path, Options(image_size=32))
    for name in ("else/renamed.txt", str(tmp_path / "else" / "renamed.txt")):
        split = load_data("lists", tmp_path, Options(image_size=32, **{option: name}))
        assert (split.query.paths, split.database.paths) == (want.query.paths, want.database.paths)
        assert split.query.labels.equal(want.query.labels) and split.database.labels.equal(want.database.labels)
