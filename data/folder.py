"""Your own images, one folder per class; a share of each class is held out as queries."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data.image_dataset import Split
from data.list_files import split_of_files
from data.options import Options
from data.split import one_hot, stratified_split
from data.walk import images_below, is_passed_over
from utils.errors import UserError
from utils.log import log

QUERY_SHARE = 0.1


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root` and of links to folders, sorted, without hidden ones.

    Raises:
        UserError: `root` cannot be read or has no folders.
    """
    try:
        names = sorted(
            entry.name for entry in os.scandir(root) if os.path.isdir(entry) and not is_passed_over(entry.name)
        )
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror or error}.") from error
    if not names:
        raise UserError(f"{root} has no folders; it needs one folder of images per class.")
    return names


def images_of_classes(root: Path, classes: list[str]) -> tuple[list[str], np.ndarray]:
    """The images of all classes, class by class: n names relative to `root`, class numbers int64 [n].

    Raises:
        UserError: a class has no images; the message names it.
    """
    found: dict[str, list[str]] = {folder: [] for folder in classes}
    loose: list[str] = []
    for name in images_below(root):
        folder, slash, _ = name.partition("/")
        (found[folder] if slash else loose).append(name)
    if loose:
        named = ", ".join(loose[:3]) + (", ..." if len(loose) > 3 else "")
        log.warning("%s: %d images beside the class folders are left out (%s)", root, len(loose), named)
    for folder, names in found.items():
        if not names:
            raise UserError(f"{root / folder} has no images; add images or remove the folder.")
    targets = np.repeat(np.arange(len(classes)), [len(names) for names in found.values()])
    return [name for names in found.values() for name in names], targets


def query_counts(sizes: np.ndarray, num_query: int | None, query_share: float) -> list[int]:
    """Queries of each class of `sizes` images, int [C]: `query_share` of it, at least 1.

    Where `num_query` is given: its part of them by size, rounded down; the remaining queries go to the largest
    remainders, the earlier class first.
    """
    if num_query is None:
        return [max(1, int(size * query_share)) for size in sizes.tolist()]
    exact = sizes * num_query / sizes.sum()
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: num_query - counts.sum()]] += 1
    return counts.tolist()


def load_folder(root: Path, options: Options) -> Split:
    """Images in ``root/<class>/``; classes in alphabetical order; --num-query overrides --query-share.

    Raises:
        UserError: there are no class folders, or a class has no images or too few.
    """
    classes = class_folders(root)
    names, targets = images_of_classes(root, classes)
    num_query = options.num_query
    if num_query is None and options.protocol == "test-10000":
        num_query = 10_000
    if num_query is not None and num_query >= len(names):
        raise UserError(f"--num-query {num_query} leaves no database: {root} has {len(names)} images.")
    sizes = np.bincount(targets, minlength=len(classes))
    counts = query_counts(sizes, num_query, options.query_share or QUERY_SHARE)
    rows = stratified_split(targets, counts, options.seed, str(root), classes)
    return split_of_files("folder", root, names, one_hot(targets, len(classes)), rows, options, classes)
