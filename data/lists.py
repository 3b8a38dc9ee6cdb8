"""A user's own images by lists: image names and multi-hot label rows, for the queries and for the database."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split
from data.list_files import given_query, read_class_names, read_pair, require_files, split_of_files
from data.options import Options
from utils.errors import UserError

FILES = ("database_img", "database_label", "query_img", "query_label")


def load_lists(
    root: Path,
    options: Options,
) -> Split:
    """Images named by lists; the four files and the images are below `root` unless their names are absolute.

    ``root/concepts.txt``, a name a label column, is read where it exists. --num-query takes that many of the query
    list, drawn by the seed.

    Raises:
        UserError: a list is missing, is malformed, or does not fit the others; images are missing.
    """
    files = [getattr(options, name) or f"{name}.txt" for name in FILES]
    require_files(root, files, "the lists dataset needs image names and label rows (docs/datasets.md).")
    database_names, database_labels = read_pair(root / files[0], root / files[1])
    query_names, query_labels = read_pair(root / files[2], root / files[3])
    num_classes = database_labels.shape[1]
    if query_labels.shape[1] != num_classes:
        raise UserError(
            f"{root / files[1]} has {num_classes} labels a row, {root / files[3]} has {query_labels.shape[1]}: "
            "both need the same."
        )
    labels = torch.cat([database_labels, query_labels])
    return split_of_files(
        "lists",
        root,
        database_names + query_names,
        labels,
        len(database_names) + given_query(len(query_names), options, "lists"),
        np.arange(len(database_names)),
        options,
        class_names=read_class_names(root / "concepts.txt", num_classes),
        multi_label=bool((labels.sum(1) > 1).any()),
        cache_name=f"lists-{zlib.crc32('/'.join(files).encode('utf-8', 'surrogateescape')):08x}",
    )
