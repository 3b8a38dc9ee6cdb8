"""Small random rankings and the definitions they are checked against, written as loops."""

from __future__ import annotations

import numpy as np
import torch


def make_case(seed, *, queries=6, database=150, bits=12, classes=10, zeros="none", share=0.3):
    """Random codes and labels; `zeros` says what was never encoded."""
    rng = np.random.default_rng(seed)
    query_code, database_code = rng.choice([-1, 1], (queries, bits)), rng.choice([-1, 1], (database, bits))
    if zeros in ("rows", "everywhere"):
        database_code[rng.random(database) < 0.4] = 0
    if zeros in ("queries", "everywhere"):
        query_code[0] = 0
    query_labels, database_labels = rng.random((queries, classes)) < share, rng.random((database, classes)) < share
    return tuple(
        torch.from_numpy(array.astype(np.float32))
        for array in (query_code, database_code, query_labels, database_labels)
    )


def count_pairs(query_code, database_code, query_labels, database_labels, grades):
    """The definition: one pair after the other."""
    query_code, database_code = query_code.int().numpy(), database_code.int().numpy()
    query_labels, database_labels = query_labels.int().numpy(), database_labels.int().numpy()
    bits = query_code.shape[1]
    items = np.zeros((len(query_code), 2 * bits + 1), int)
    relevant = np.zeros((len(query_code), grades, 2 * bits + 1), int)
    for i in range(len(query_code)):
        for j in range(len(database_code)):
            halves = bits - int((query_code[i] * database_code[j]).sum())
            shared = int((query_labels[i] * database_labels[j]).sum())
            items[i, halves] += 1
            relevant[i, : min(shared, grades), halves] += 1
    return items, relevant


def sort_and_average(query_code, database_code, query_labels, database_labels, limit):
    """The definition: a stable sort by distance, then the precision at each relevant item."""
    averages = []
    for code, label in zip(query_code.numpy(), query_labels.numpy(), strict=True):
        order = np.argsort(-(database_code.numpy() @ code), kind="stable")[:limit]
        precisions, found = [], 0
        for rank, item in enumerate(order, start=1):
            if (database_labels[item].numpy() * label).sum() > 0:
                found += 1
                precisions.append(found / rank)
        averages.append(np.mean(precisions) if precisions else 0.0)
    return np.array(averages)
