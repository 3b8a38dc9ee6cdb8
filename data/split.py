"""Which images are queries: a function of the seed and of the labels' order alone."""

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
    """`size` of ``range(count)`` without replacement, ascending: int64 [size]."""
    order = torch.randperm(count, generator=generator(seed, "split", *purpose))
    return np.sort(order[:size].numpy())


def random_split(count: int, num_query: int, seed: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(query rows, database rows), `num_query` of `count` images at random, both ascending.

    Raises:
        UserError: where nothing would be left for the database; `where` names the dataset.
    """
    if num_query >= count:
        raise UserError(f"{where}: {num_query} queries leave no database, there are {count} images: lower --num-query.")
    query = sample_rows(count, num_query, seed)
    return query, rest_of(count, query)


def per_class(num_query: int, num_classes: int, where: str) -> int:
    """Queries a class; UserError where `num_query` is no multiple of the number of classes."""
    if num_query % num_classes:
        raise UserError(
            f"{where}: --num-query {num_query} is not a multiple of the {num_classes} classes; "
            f"every class gives the same number of queries."
        )
    return num_query // num_classes


def stratified_split(
    targets: np.ndarray, counts: list[int], seed: int, where: str, class_names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(query rows, database rows): ``counts[c]`` queries of class c at random, both ascending.

    Args:
        targets: int [n], the class of each image.
        counts: queries a class.

    Raises:
        UserError: where a class would have no image left in the database.
    """
    chosen = []
    for label, size in enumerate(counts):
        members = np.flatnonzero(targets == label)
        if size >= len(members):
            raise UserError(
                f"{where}: class {class_names[label]} has {len(members)} images, {size} queries of it would leave none "
                "for the database: lower --num-query or add images."
            )
        chosen.append(members[sample_rows(len(members), size, seed, label)])
    query = np.sort(np.concatenate(chosen))
    return query, rest_of(len(targets), query)


def one_hot(targets: np.ndarray, num_classes: int) -> torch.Tensor:
    """float32 [n, C] from classes int [n]."""
    labels = torch.zeros(len(targets), num_classes, dtype=torch.float32)
    labels[torch.arange(len(targets)), torch.from_numpy(targets.astype(np.int64))] = 1.0
    return labels
