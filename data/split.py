"""Which images are queries; this depends only on the seed and on the order of the labels."""

from __future__ import annotations

import numpy as np
import torch

from utils.errors import UserError
from utils.seeding import generator


def rest_of(count: int, query: np.ndarray) -> np.ndarray:
    """The rows of ``range(count)`` that are not in `query`, ascending: int64."""
    keep = np.ones(count, dtype=bool)
    keep[query] = False
    return np.flatnonzero(keep)


def sample_rows(count: int, size: int, seed: int, *purpose: int | str) -> np.ndarray:
    """`size` numbers of ``range(count)`` without replacement, ascending: int64 [size].

    Args:
        count: the numbers are drawn from 0 to ``count - 1``.
        size: how many are drawn.
        seed: of the run.
        purpose: draws with different purposes are independent.
    """
    order = torch.randperm(count, generator=generator(seed, "split", *purpose))
    return np.sort(order[:size].numpy())


def random_split(count: int, num_query: int, seed: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """`num_query` of `count` images at random, and the others: query rows, database rows, both int64 and ascending.

    Raises:
        UserError: the database would be empty; `where` names the dataset.
    """
    if num_query >= count:
        raise UserError(f"{where}: {num_query} queries of {count} images leave no database; give a lower --num-query.")
    query = sample_rows(count, num_query, seed)
    return query, rest_of(count, query)


def per_class(num_query: int, num_classes: int, where: str) -> int:
    """Queries per class.

    Raises:
        UserError: `num_query` is not a multiple of the number of classes; `where` names the dataset.
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
    """``counts[c]`` images of each class c at random, and the others: query rows, database rows, int64, ascending.

    Args:
        targets: int [n], the class of each image.
        counts: queries per class.
        seed: of the run.
        where: the dataset or its folder, for the message.
        class_names: for the message.

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
    """Label rows float32 [n, C] of the classes int [n]."""
    labels = torch.zeros(len(targets), num_classes, dtype=torch.float32)
    labels[torch.arange(len(targets)), torch.from_numpy(targets.astype(np.int64))] = 1.0
    return labels
