"""Your own images by lists: image names and multi-hot label rows, for the queries and for the database."""

from __future__ import annotations

import zlib
from pathlib import Path

from data.image_dataset import Split
from data.list_files import read_class_names, read_pairs, require_files, split_by_lists, split_of_files
from data.options import Options

FILES = ("database_img", "database_label", "query_img", "query_label")


def load_lists(root: Path, options: Options) -> Split:
    """Images named by lists; names of lists and of images are relative to `root` or absolute.

    ``root/concepts.txt`` names the label columns where it exists.

    Raises:
        UserError: a list is missing, malformed, or does not match the others; images are missing.
    """
    files = [getattr(options, file) or f"{file}.txt" for file in FILES]
    paths = [root / file for file in files]
    require_files(paths, "this dataset needs lists of image names and of label rows (docs/datasets.md).")
    names, labels, num_database = read_pairs([(paths[0], paths[1]), (paths[2], paths[3])])
    rows = split_by_lists(len(names), num_database, options, "lists")
    class_names = read_class_names(root / "concepts.txt", labels.shape[1])
    cache_name = f"lists-{zlib.crc32('/'.join(files).encode('utf-8', 'surrogateescape')):08x}"
    return split_of_files("lists", root, names, labels, rows, options, class_names, cache_name)
