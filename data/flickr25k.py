"""MIR-Flickr 25K with 38 labels (or 24, by the width of the label files), from a database list and a test list.

Both lists are pooled, the database list first; 1,000 images drawn by the seed are the queries. ``--split lists`` keeps
the lists as they are. Names in the lists may start with ``mirflickr/`` or not. ``python -m dataset.prepare_flickr25k``
makes such lists from the official release.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.image_dataset import Split
from data.list_files import (
    find_folder,
    given_query,
    read_class_names,
    read_two_pairs,
    require_files,
    split_of_files,
    with_prefix,
)
from data.options import Options
from data.split import random_split

FOLDERS = ("Flickr", "flickr25k", "flickr")
IMAGES = "mirflickr"
DATABASE = ("db_image.txt", "database_label.txt")
QUERY = ("test_image_m.txt", "test_label.txt")
WIDTHS = {24, 38}
NUM_QUERY = 1000


def load_flickr25k(root: Path, options: Options) -> Split:
    """MIR-Flickr 25K.

    Raises:
        UserError: lists or images are missing or do not match.
    """
    folder = find_folder(root, FOLDERS, DATABASE[0], "MIR-Flickr 25K")
    remedy = "get the lists, or make them with python -m dataset.prepare_flickr25k (docs/datasets.md)."
    require_files(folder, (*DATABASE, *QUERY), remedy)
    names, labels, num_database = read_two_pairs(
        (folder / DATABASE[0], folder / DATABASE[1]), (folder / QUERY[0], folder / QUERY[1]), WIDTHS
    )
    if options.split == "lists":
        query = num_database + given_query(len(names) - num_database, options, "flickr25k")
        database = np.arange(num_database)
    else:
        query, database = random_split(len(names), options.num_query or NUM_QUERY, options.seed, "flickr25k")
    return split_of_files(
        "flickr25k",
        folder,
        [with_prefix(name, IMAGES) for name in names],
        labels,
        query,
        database,
        options,
        class_names=read_class_names(folder / "concepts.txt", labels.shape[1]),
        multi_label=True,
    )
