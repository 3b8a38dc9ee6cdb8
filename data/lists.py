"""Your own images by lists: image names and labels, for the queries, the database and, if it is another, for training.

Either the names and the label rows are in two files each, or the labels are behind the names, as in the lists
``train.txt``, ``test.txt`` and ``database.txt`` of HashNet (https://github.com/thuml/HashNet, pytorch/data) and of
DeepHash (https://github.com/thulab/DeepHash, https://github.com/swuxyj/DeepHash-pytorch).
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split
from data.list_files import (
    read_class_names,
    read_pairs,
    relocated,
    require_files,
    split_by_lists,
    split_of_files,
)
from data.name_lists import read_names, split_labels
from data.options import Options
from utils.log import log

PARTS = ("database", "query", "train")
# What those projects search, search for, and train on. Training images may be in the database too.
_THEIR_NAMES = {"database": "database.txt", "query": "test.txt", "train": "train.txt"}


def load_lists(root: Path, options: Options) -> Split:
    """Images named by lists; names of lists and of images are relative to `root` or absolute.

    ``root/concepts.txt`` names the label columns where it exists.

    Raises:
        UserError: a list is missing, malformed, or does not match the others; images are missing.
    """
    files = _find_lists(root, options)
    parts, labels, numbers = read_pairs(files)
    for what, (images, _), names in zip(("database", "query", "training"), files, parts, strict=False):
        log.info("%s: %d %s images", images, len(names), what)
    all_names = relocated(root, [name for names in parts for name in names])
    num_database, num_listed = len(parts[0]), len(parts[0]) + len(parts[1])
    names = all_names[:num_listed]
    rows: tuple[np.ndarray, ...] = split_by_lists(num_listed, num_database, options, "lists")
    if len(parts) > 2:
        names, labels, own = _add_training(all_names, num_database, num_listed, labels)
        if set(own.tolist()) != set(range(num_database)):
            rows = (*rows, own)
    class_names = read_class_names(root / "concepts.txt", labels.shape[1], numbers)
    paths = [path for pair in files for path in pair if path is not None]
    listed = "/".join(str(path.relative_to(root) if path.is_relative_to(root) else path) for path in paths)
    cache_name = f"lists-{zlib.crc32(listed.encode('utf-8', 'surrogateescape')):08x}"
    return split_of_files("lists", root, names, labels, rows, options, class_names, cache_name)


def _find_lists(root: Path, options: Options) -> list[tuple[Path, Path | None]]:
    """The image list and the label file of each part, None where the labels are behind the names."""
    theirs = options.database_img is None and not (root / "database_img.txt").exists()
    theirs = theirs and (root / _THEIR_NAMES["database"]).is_file()
    files: list[tuple[Path, Path | None]] = []
    for part in PARTS:
        given, labels = getattr(options, f"{part}_img"), getattr(options, f"{part}_label")
        images = root / (given or (_THEIR_NAMES[part] if theirs else f"{part}_img.txt"))
        if part == "train" and not given and not images.is_file():
            continue
        if labels is None and (theirs or _has_labels(images, root / f"{part}_label.txt")):
            files.append((images, None))
        else:
            files.append((images, root / (labels or f"{part}_label.txt")))
    remedy = "this dataset needs lists of images and their labels (docs/datasets.md)."
    require_files([path for pair in files for path in pair if path is not None], remedy)
    return files


def _has_labels(images: Path, labels: Path) -> bool:
    """Whether the labels of an image list are behind its names, since there is no file `labels`."""
    return not labels.exists() and images.is_file() and split_labels(read_names(images)[0])[1] != ""


def _add_training(
    names: list[str], num_database: int, num_listed: int, labels: torch.Tensor
) -> tuple[list[str], torch.Tensor, np.ndarray]:
    """Leave out training images, those from `num_listed` on, that the database has too, with the same labels.

    Returns:
        The other names, their labels, and the rows of the training images, int64.
    """
    known = {names[row]: row for row in reversed(range(num_database))}
    kept = list(range(num_listed))
    rows = []
    for number in range(num_listed, len(names)):
        row = known.get(names[number])
        if row is None or not torch.equal(labels[row], labels[number]):
            row = len(kept)
            kept.append(number)
        rows.append(row)
    return [names[number] for number in kept], labels[kept], np.array(rows, dtype=np.int64)
