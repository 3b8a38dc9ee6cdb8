"""A user's own images in one folder a class; a share of each class is held out as queries."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from data.decode import EXTENSIONS
from data.image_dataset import Split
from data.list_files import split_of_files
from data.options import Options
from data.split import one_hot, stratified_split
from utils.errors import UserError

QUERY_SHARE = 0.1


def query_counts(sizes: np.ndarray, num_query: int | None, query_share: float) -> list[int]:
    """Queries a class: `query_share` of each, at least one; or `num_query` in all, in proportion to the sizes.

    In proportion: shares are rounded down and the remaining queries go to the largest remainders, the earlier class
    first.
    """
    if num_query is None:
        return [max(1, int(size * query_share)) for size in sizes.tolist()]
    exact = sizes * num_query / sizes.sum()
    counts = np.floor(exact).astype(int)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: num_query - counts.sum()]] += 1
    return counts.tolist()


def load_folder(root: Path, options: Options) -> Split:
    """Images below ``root/<class>/``, of any kind that Pillow reads; classes in alphabetical order.

    `options.query_share` of each class is held out as queries; `options.num_query` overrides it.

    Raises:
        UserError: no class folders, or a class without images or with too few.
    """
    classes = class_folders(root)
    names, targets = images_of_classes(root, classes)
    sizes = np.bincount(targets, minlength=len(classes))
    if options.num_query is not None and options.num_query >= len(names):
        raise UserError(f"{root} holds {len(names)} images, --num-query {options.num_query} leaves no database.")
    counts = query_counts(sizes, options.num_query, options.query_share or QUERY_SHARE)
    query, database = stratified_split(np.array(targets), counts, options.seed, str(root), classes)
    return split_of_files(
        "folder",
        root,
        names,
        one_hot(np.array(targets), len(classes)),
        query,
        database,
        options,
        class_names=classes,
        multi_label=False,
    )


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, hidden ones left out; UserError where there is none."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror or error}.") from error
    if not names:
        raise UserError(f"{root} holds no folders: it needs one folder of images for each class.")
    return names


def images_below(root: Path, folder: str) -> list[str]:
    """Every image below ``root/folder``, at any depth, by its file's extension: sorted names relative to `root`.

    Hidden files and files of other kinds are left out.
    """
    found = []
    for place, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.append(Path(place, name).relative_to(root).as_posix())
    return sorted(found)


def images_of_classes(root: Path, classes: list[str]) -> tuple[list[str], list[int]]:
    """(names relative to root, class of each), class by class; UserError names a class without images."""
    names: list[str] = []
    targets: list[int] = []
    for label, folder in enumerate(classes):
        found = images_below(root, folder)
        if not found:
            raise UserError(f"{root / folder} holds no image: add images or take the folder away.")
        names += found
        targets += [label] * len(found)
    return names, targets
