"""MIR-Flickr 25K: 38 annotations (or 24, by the label file's width), from the database and the test list.

Both lists are pooled, database first; 1,000 images drawn by the seed are the queries. ``split="lists"`` keeps the
lists as given. A line may or may not begin with ``mirflickr/``. ``python -m dataset.prepare_flickr25k`` makes such
lists from the official release.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split
from data.list_files import (
    find_folder,
    given_query,
    read_class_names,
    read_pair,
    require_files,
    split_of_files,
    with_prefix,
)
from data.options import Options
from data.split import random_split
from utils.errors import UserError

FOLDERS = ("Flickr", "flickr25k", "flickr")
IMAGES = "mirflickr"
DATABASE = ("db_image.txt", "database_label.txt")
QUERY = ("test_image_m.txt", "test_label.txt")
WIDTHS = {24, 38}
NUM_QUERY = 1000


def load_flickr25k(root: Path, options: Options) -> Split:
    """MIR-Flickr 25K; UserError where lists or images are missing or do not fit together."""
    folder = find_folder(root, FOLDERS, DATABASE[0], "MIR-Flickr 25K")
    mend = "get the lists, or make them with python -m dataset.prepare_flickr25k (docs/datasets.md)."
    require_files(folder, (*DATABASE, *QUERY), mend)
    database_names, database_labels = read_pair(folder / DATABASE[0], folder / DATABASE[1], WIDTHS)
    query_names, query_labels = read_pair(folder / QUERY[0], folder / QUERY[1], WIDTHS)
    if database_labels.shape[1] != query_labels.shape[1]:
        raise UserError(
            f"{folder / DATABASE[1]} has {database_labels.shape[1]} labels a row, {folder / QUERY[1]} "
            f"has {query_labels.shape[1]}: both need the same."
        )
    names = [with_prefix(name, IMAGES) for name in database_names + query_names]
    if options.split == "lists":
        query = len(database_names) + given_query(len(query_names), options, "flickr25k")
        database = np.arange(len(database_names))
    else:
        query, database = random_split(len(names), options.num_query or NUM_QUERY, options.seed, "flickr25k")
    labels = torch.cat([database_labels, query_labels])
    return split_of_files(
        "flickr25k",
        folder,
        names,
        labels,
        query,
        database,
        options,
        class_names=read_class_names(folder / "concepts.txt", labels.shape[1]),
        multi_label=True,
    )
