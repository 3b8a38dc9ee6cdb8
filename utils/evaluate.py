"""Metrics of a ranking by Hamming distance: mAP and others (docs/evaluation.md has the formulas)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from utils.hamming import Device, Matrices, count_by_distance, query_blocks, stable_average_precision, to_numpy
from utils.ranking_metrics import cut, expected_average_precision, expected_ndcg, expected_within, within_radius

_CODES = "hold only -1, 0 and +1; take the sign of the network's output first."
_LABELS = "be multi-hot: only 0 and 1."
Array = torch.Tensor | np.ndarray
TIES = ("expected", "stable")
# The N of precision@N, recall@N and NDCG@N.
CUTOFFS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


def mean_average_precision(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    device: Device = None,
    topk: int | None = None,
    *,
    ties: str = "expected",
) -> float:
    """mAP@R: the mean of `average_precision` over all queries; a query without a relevant item counts as 0."""
    arguments = query_code, database_code, query_labels, database_labels, device, topk
    return float(average_precision(*arguments, ties=ties).mean())


def average_precision(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    device: Device = None,
    topk: int | None = None,
    *,
    ties: str = "expected",
) -> torch.Tensor:
    """AP@R of each query in the ranking of the database by Hamming distance d = (K − q·b)/2.

    Args:
        query_code, database_code: [Q, K] and [D, K], entries −1, +1, or 0 for a bit that was never encoded.
        query_labels, database_labels: [Q, C] and [D, C], multi-hot; who shares a label is relevant.
        device: where to count; None: the CPU.
        topk: R; None, ≤ 0 or ≥ D: the whole database.
        ties: "expected": the expectation over the order of tied items; "stable": ties in database order.

    Returns:
        float64 [Q], on the CPU: the mean of the precision at the ranks of the relevant items among the first R, or 0.

    Raises:
        ValueError: shapes do not match, a code is not −1, 0 or +1, a label is not 0 or 1, or `ties` is unknown.

    Source: McSherry & Najork, ECIR 2008; the formulas are in docs/evaluation.md.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, not {ties!r}.")
    matrices = _checked(query_code, database_code, query_labels, database_labels)
    result = torch.empty(len(query_code), dtype=torch.float64)
    for rows, block in query_blocks(matrices):
        result[rows] = torch.from_numpy(_average_precision(block, device, topk, ties))
    return result


def evaluate_codes(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    topk: int | None = None,
    device: Device = None,
) -> dict[str, Any]:
    """All metrics of docs/evaluation.md, as plain numbers, lists and dicts; arguments as for `average_precision`.

    All are means over all queries; a query without a relevant item counts as 0.

    Returns:
        "map": {"expected", "stable"}, mAP@R;
        "precision_recall": {"precision", "recall"}, lists by Hamming radius 0..K;
        "precision_at", "recall_at": {N: value}, for all N of `CUTOFFS` up to D;
        "radius_2": {"precision", "recall", "empty_share"}, the last the share of queries without an item in the radius;
        "ndcg_at": {N: value}, only if an item has more than one label;
        "queries_without_relevant"; "zero_rows", the number of database rows that are all 0; "topk", R or None for all.
    """
    matrices = _checked(query_code, database_code, query_labels, database_labels)
    (num_queries, bits), num_items = matrices.query_code.shape, len(matrices.database_code)
    most_labels = _most_labels(matrices.query_labels)
    multi_label = max(most_labels, _most_labels(matrices.database_labels)) > 1
    grades = max(1, most_labels) if multi_label else 1
    cutoffs = [n for n in CUTOFFS if n <= num_items]
    radius = min(2, bits)
    averages = {ties: torch.empty(num_queries, dtype=torch.float64) for ties in TIES}
    sums: dict[str, Any] = {}

    def add(name: str, values: np.ndarray) -> None:
        sums[name] = sums.get(name, 0) + values.sum(axis=0)

    for rows, block in query_blocks(matrices, grades):
        items, graded = count_by_distance(block, grades=grades, device=device)
        relevant = graded[:, 0]
        total = relevant.sum(axis=1)
        found = expected_within(items, relevant, cutoffs)
        precision, recall, inside = within_radius(items, relevant)
        averages["expected"][rows] = torch.from_numpy(expected_average_precision(items, relevant, topk))
        averages["stable"][rows] = torch.from_numpy(_average_precision(block, device, topk, "stable"))
        add("precision_at", found / cutoffs)
        add("recall_at", found / np.maximum(total, 1)[:, None])
        add("precision", precision)
        add("recall", recall)
        add("empty", inside[:, radius] == 0)
        add("without_relevant", total == 0)
        if multi_label:
            add("ndcg_at", expected_ndcg(items, graded, cutoffs))

    def mean(name: str) -> Any:
        return (sums[name] / num_queries).tolist()

    report: dict[str, Any] = {
        "map": {ties: float(values.mean()) for ties, values in averages.items()},
        "precision_recall": {"precision": mean("precision"), "recall": mean("recall")},
        "precision_at": dict(zip(cutoffs, mean("precision_at"), strict=True)),
        "recall_at": dict(zip(cutoffs, mean("recall_at"), strict=True)),
        "radius_2": {
            "precision": mean("precision")[radius],
            "recall": mean("recall")[radius],
            "empty_share": mean("empty"),
        },
    }
    if multi_label:
        report["ndcg_at"] = dict(zip(cutoffs, mean("ndcg_at"), strict=True))
    limit = cut(topk, num_items)
    return {
        **report,
        "queries_without_relevant": int(sums["without_relevant"]),
        "zero_rows": sum(int((codes == 0).all(axis=1).sum()) for codes in _chunks(matrices.database_code)),
        "topk": None if limit == num_items else limit,
    }


def _average_precision(block: Matrices, device: Device, topk: int | None, ties: str) -> np.ndarray:
    if ties == "stable":
        return stable_average_precision(block, cut(topk, len(block.database_code)), device=device)
    items, relevant = count_by_distance(block, device=device)
    return expected_average_precision(items, relevant[:, 0], topk)


def _most_labels(labels: torch.Tensor) -> int:
    return max(int(rows.sum(axis=1).max()) for rows in _chunks(labels))


def _checked(query_code: Array, database_code: Array, query_labels: Array, database_labels: Array) -> Matrices:
    matrices = Matrices(
        _checked_matrix(query_code, "query_code", np.sign, _CODES),
        _checked_matrix(database_code, "database_code", np.sign, _CODES),
        _checked_matrix(query_labels, "query_labels", np.square, _LABELS),
        _checked_matrix(database_labels, "database_labels", np.square, _LABELS),
    )
    for what, left, right in (("code length", *matrices[:2]), ("number of classes", *matrices[2:])):
        if left.shape[1] != right.shape[1]:
            raise ValueError(f"The {what} of queries ({left.shape[1]}) and database ({right.shape[1]}) differs.")
    for what, codes, labels in (("query", *matrices[::2]), ("database", *matrices[1::2])):
        if len(codes) != len(labels):
            raise ValueError(f"{len(codes)} {what} codes but {len(labels)} rows of {what} labels.")
    return matrices


def _checked_matrix(array: Array, name: str, unchanged: Callable[..., np.ndarray], rule: str) -> torch.Tensor:
    """A matrix on the CPU; `unchanged` must not change its numbers, which breaks the `rule`."""
    tensor = torch.as_tensor(array).detach().cpu()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} must be a matrix with one row per item, not of shape {tuple(tensor.shape)}.")
    if not all(np.array_equal(unchanged(rows), rows) for rows in _chunks(tensor)):
        raise ValueError(f"{name} must {rule}")
    return tensor


def _chunks(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    return (to_numpy(rows) for rows in tensor.split(max(1, (1 << 18) // tensor.shape[1])))
