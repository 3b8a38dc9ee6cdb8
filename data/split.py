"""Which images are queries; this depends only on the seed and on the order of the labels.

Rows are int64 and ascending. In error messages, `where` names the dataset.
"""

from __future__ import annotations

import numpy as np
import torch

from utils.errors import UserError
from utils.seeding import generator


def rest_of(count: int, query: np.ndarray) -> np.ndarray:
    """The rows of ``range(count)`` that are not in `query`."""
    return np.setdiff1d(np.arange(count), query)


def sample_rows(count: int, size: int, seed: int, *purpose: int | str) -> np.ndarray:
    """`size` rows of ``range(count)`` without replacement; draws with different purposes are independent."""
    order = torch.randperm(count, generator=generator(seed, "split", *purpose))
    return np.sort(order[:size].numpy())


def random_split(count: int, num_query: int, seed: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """`num_query` of `count` images at random, and the others: query rows, database rows.

    Raises:
        UserError: the database would be empty.
    """
    if num_query >= count:
        raise UserError(f"{where}: {num_query} queries of {count} images leave no database; give a lower --num-query.")
    query = sample_rows(count, num_query, seed)
    return query, rest_of(count, query)


def per_class(num_query: int, num_classes: int, where: str) -> int:
    """Queries per class.

    Raises:
        UserError: `num_query` is not a multiple of the number of classes.
    """
    if num_query % num_classes:
        raise UserError(
            f"{where}: --num-query {num_query} is not a multiple of the {num_classes} classes; "
            "each class has the same number of queries."
        )
    return num_query // num_classes


def stratified_split(
    targets: np.ndarray, counts: list[int], seed: int, where: str, class_names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """``counts[c]`` images of each class c of `targets`, int [n], at random, and the others: query and database rows.

    Raises:
        UserError: a class would have no image in the database.
    """
    chosen = []
    for label, size in enumerate(counts):
        members = np.flatnonzero(targets == label)
        if size >= len(members):
            raise UserError(
                f"{where}: class {class_names[label]} has {len(members)} images, so that {size} queries leave none "
                "for the database; give a lower --num-query or add images."
            )
        chosen.append(members[sample_rows(len(members), size, seed, label)])
    query = np.sort(np.concatenate(chosen))
    return query, rest_of(len(targets), query)


def one_hot(targets: np.ndarray, num_classes: int) -> torch.Tensor:
    """Label rows float32 [n, C] of the classes int64 [n]."""
    labels = torch.zeros(len(targets), num_classes)
    labels[torch.arange(len(targets)), torch.from_numpy(targets)] = 1
    return labels
