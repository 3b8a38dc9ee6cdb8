"""Your own images by lists: image names and multi-hot label rows, for the queries and for the database."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from data.image_dataset import Split
from data.list_files import given_query, read_class_names, read_two_pairs, require_files, split_of_files
from data.options import Options

FILES = ("database_img", "database_label", "query_img", "query_label")


def load_lists(root: Path, options: Options) -> Split:
    """Images named by lists; names of lists and of images are relative to `root` or absolute.

    ``root/concepts.txt`` names the label columns where it exists. --num-query draws that many images of the query list
    by the seed.

    Raises:
        UserError: a list is missing, malformed, or does not match the others; images are missing.
    """
    names = [getattr(options, file) or f"{file}.txt" for file in FILES]
    require_files(root, names, "this dataset needs lists of image names and of label rows (docs/datasets.md).")
    files = [root / name for name in names]
    images, labels, num_database = read_two_pairs((files[0], files[1]), (files[2], files[3]))
    return split_of_files(
        "lists",
        root,
        images,
        labels,
        num_database + given_query(len(images) - num_database, options, "lists"),
        np.arange(num_database),
        options,
        class_names=read_class_names(root / "concepts.txt", labels.shape[1]),
        multi_label=bool((labels.sum(1) > 1).any()),
        cache_name=f"lists-{zlib.crc32('/'.join(names).encode('utf-8', 'surrogateescape')):08x}",
    )
