"""How good a ranking by Hamming distance is: mAP and its companions (docs/evaluation.md has the formulas)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from utils.hamming import count_by_distance, query_blocks, stable_average_precision, to_numpy
from utils.ranking_metrics import cut, expected_average_precision

Array = torch.Tensor | np.ndarray
TIES = ("expected", "stable")


def mean_average_precision(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    device: torch.device | str | None = None,
    topk: int | None = None,
    *,
    ties: str = "expected",
) -> float:
    """mAP@R: the mean of `average_precision` over all queries, those without a relevant item included as 0."""
    precisions = average_precision(
        query_code, database_code, query_labels, database_labels, device, topk, ties=ties
    )  # fmt: skip
    return float(precisions.mean())


def average_precision(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    device: torch.device | str | None = None,
    topk: int | None = None,
    *,
    ties: str = "expected",
) -> torch.Tensor:
    """AP@R of each query in the ranking of the database by Hamming distance d = (K − q·b)/2.

    Args:
        query_code: [Q, K], entries −1, +1, or 0 for a bit never encoded.
        database_code: [D, K], the same.
        query_labels: [Q, C], multi-hot (0/1).
        database_labels: [D, C]; an item is relevant to a query with which it shares a label.
        device: where to count; None is the CPU.
        topk: R; None, ≤ 0 or ≥ D: the whole database.
        ties: "expected", the expectation over the order inside ties, or "stable", ties in database order.

    Returns:
        float64 [Q], on the CPU: Σ of the precision at the rank of each relevant item of the first R, over their number.

    Raises:
        ValueError: shapes that do not match, codes other than −1, 0, +1, labels other than 0, 1, unknown `ties`.

    Source: docs/evaluation.md.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, not {ties!r}.")
    codes = _check_codes(query_code, "query_code"), _check_codes(database_code, "database_code")
    labels = _check_labels(query_labels, "query_labels"), _check_labels(database_labels, "database_labels")
    _check_match(*codes, *labels)
    result = torch.empty(len(codes[0]), dtype=torch.float64)
    for rows in query_blocks(len(codes[0]), codes[0].shape[1]):
        chosen = codes[0][rows], codes[1], labels[0][rows], labels[1]
        if ties == "stable":
            values = stable_average_precision(*chosen, cut(topk, len(codes[1])), device=device)
        else:
            items, relevant = count_by_distance(*chosen, device=device)
            values = expected_average_precision(items, relevant[:, 0], topk)
        result[rows] = torch.from_numpy(values)
    return result


def _check_codes(array: Array, name: str) -> torch.Tensor:
    tensor = _check_matrix(array, name)
    if not all(np.array_equal(np.sign(rows), rows) for rows in _chunks(tensor)):
        raise ValueError(f"{name} must hold only -1, 0 and +1; take the sign of the network's output first.")
    return tensor


def _check_labels(array: Array, name: str) -> torch.Tensor:
    tensor = _check_matrix(array, name)
    if not all(np.array_equal(rows * rows, rows) for rows in _chunks(tensor)):
        raise ValueError(f"{name} must be multi-hot: only 0 and 1.")
    return tensor


def _chunks(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    return (to_numpy(rows) for rows in tensor.split(max(1, (1 << 18) // tensor.shape[1])))


def _check_matrix(array: Array, name: str) -> torch.Tensor:
    tensor = torch.as_tensor(array).detach().cpu()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} must be a matrix with a row an item, not of shape {tuple(tensor.shape)}.")
    return tensor


def _check_match(query_code, database_code, query_labels, database_labels) -> None:
    for what, left, right in (("code length", query_code, database_code), ("classes", query_labels, database_labels)):
        if left.shape[1] != right.shape[1]:
            raise ValueError(f"The queries' {what} ({left.shape[1]}) and the database's ({right.shape[1]}) differ.")
    for what, codes, labels in (("query", query_code, query_labels), ("database", database_code, database_labels)):
        if len(codes) != len(labels):
            raise ValueError(f"{len(codes)} {what} codes but {len(labels)} rows of {what} labels.")
