"""A user's own images in one folder a class; a share of each class is held out as queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.class_folders import class_folders, images_of_classes
from data.image_dataset import Split
from data.listed import split_of_files
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


def load_folder(root: Path, options: Options, query_share: float = QUERY_SHARE) -> Split:
    """Images below ``root/<class>/``, of any kind that Pillow reads; classes in alphabetical order.

    Args:
        query_share: share of each class held out as queries, above 0 and below 1; --num-query overrides it.

    Raises:
        UserError: no class folders, a class without images or with too few, a share that is none.
    """
    if not isinstance(query_share, (int, float)) or not 0 < query_share < 1:
        raise UserError(f"query_share must be above 0 and below 1, not {query_share!r}.")
    classes = class_folders(root)
    names, targets = images_of_classes(root, classes)
    sizes = np.bincount(targets, minlength=len(classes))
    if options.num_query is not None and options.num_query >= len(names):
        raise UserError(f"{root} holds {len(names)} images, --num-query {options.num_query} leaves no database.")
    counts = query_counts(sizes, options.num_query, query_share)
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
