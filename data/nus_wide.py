r"""NUS-WIDE with its 21 (tc21) or 10 (tc10) most frequent concepts, from the lists that its users share.

tc21: the images of the test list (2,100) are the queries, those of the database list (193,734) the database. tc10: of
one list (186,577), 5,000 images drawn by the seed are the queries. Names in the lists may start with ``images/`` or not
and may have ``\`` for ``/``. ``python -m dataset.prepare_nus_wide`` makes such lists from the official release.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.image_dataset import Split
from data.list_files import (
    find_folder,
    given_query,
    read_class_names,
    read_pair,
    read_two_pairs,
    require_files,
    split_of_files,
    with_prefix,
)
from data.options import Options
from data.split import random_split

FOLDERS = ("NUS-WIDE", "nus-wide", "NUS_WIDE")
IMAGES = "images"
TC21_DATABASE = ("database_img.txt", "database_label_onehot.txt")
TC21_QUERY = ("test_img.txt", "test_label_onehot.txt")
TC10 = ("img_tc10.txt", "targets_onehot_tc10.txt")
TC10_NUM_QUERY = 5000
_REMEDY = "get the lists, or make them with python -m dataset.prepare_nus_wide (docs/datasets.md)."


def load_nus_wide_tc21(root: Path, options: Options) -> Split:
    """The 21 most frequent concepts.

    Raises:
        UserError: lists or images are missing or do not match.
    """
    folder = find_folder(root, FOLDERS, TC21_DATABASE[0], "NUS-WIDE (21 concepts)")
    require_files(folder, (*TC21_DATABASE, *TC21_QUERY), _REMEDY)
    names, labels, num_database = read_two_pairs(
        (folder / TC21_DATABASE[0], folder / TC21_DATABASE[1]), (folder / TC21_QUERY[0], folder / TC21_QUERY[1]), {21}
    )
    return split_of_files(
        "nus-wide-tc21",
        folder,
        [with_prefix(name, IMAGES) for name in names],
        labels,
        num_database + given_query(len(names) - num_database, options, "nus-wide-tc21"),
        np.arange(num_database),
        options,
        class_names=read_class_names(folder / "concepts_tc21.txt", 21),
        multi_label=True,
    )


def load_nus_wide_tc10(root: Path, options: Options) -> Split:
    """The 10 most frequent concepts.

    Raises:
        UserError: lists or images are missing or do not match.
    """
    folder = find_folder(root, FOLDERS, TC10[0], "NUS-WIDE (10 concepts)")
    require_files(folder, TC10, _REMEDY)
    names, labels = read_pair(folder / TC10[0], folder / TC10[1], {10})
    query, database = random_split(len(names), options.num_query or TC10_NUM_QUERY, options.seed, "nus-wide-tc10")
    return split_of_files(
        "nus-wide-tc10",
        folder,
        [with_prefix(name, IMAGES) for name in names],
        labels,
        query,
        database,
        options,
        class_names=read_class_names(folder / "concepts_tc10.txt", 10),
        multi_label=True,
    )
