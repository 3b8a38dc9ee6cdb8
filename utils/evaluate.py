"""How good a ranking by Hamming distance is: mAP and its companions (docs/evaluation.md has the formulas)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from utils.hamming import count_by_distance, query_blocks, stable_average_precision, to_numpy
from utils.ranking_metrics import cut, expected_average_precision, expected_ndcg, expected_within, within_radius

Array = torch.Tensor | np.ndarray
Matrices = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]  # query codes, database codes, query labels, database labels
TIES = ("expected", "stable")
# The N of precision@N, recall@N and NDCG@N.
CUTOFFS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


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
    arguments = query_code, database_code, query_labels, database_labels, device, topk
    return float(average_precision(*arguments, ties=ties).mean())


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
    arguments = _checked(query_code, database_code, query_labels, database_labels)
    result = torch.empty(len(query_code), dtype=torch.float64)
    for rows, block in _query_blocks(arguments):
        result[rows] = torch.from_numpy(_average_precision(block, device, topk, ties))
    return result


def evaluate_codes(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    topk: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Every figure of docs/evaluation.md, as plain numbers and lists.

    Args: as `average_precision`.

    Returns:
        "map": {"expected", "stable"}, mAP@R;
        "precision_recall": {"precision", "recall"}, lists by Hamming radius 0..K;
        "precision_at", "recall_at": {N: value}, for the `CUTOFFS` that the database is not too small for;
        "radius_2": {"precision", "recall", "empty_share"};
        "ndcg_at": {N: value}, only where an item has more than one label;
        "queries_without_relevant", "zero_rows" (database rows never encoded), "topk" (R; null for all).
        All means run over all queries; one without a relevant item counts as 0.

    Raises:
        ValueError: as `average_precision`.
    """
    arguments = _checked(query_code, database_code, query_labels, database_labels)
    bits, (num_queries, num_items) = arguments[0].shape[1], (len(arguments[0]), len(arguments[1]))
    asked, multi_label = _most_labels(arguments[2]), max(map(_most_labels, arguments[2:])) > 1
    grades = max(1, asked) if multi_label else 1
    cutoffs = [n for n in CUTOFFS if n <= num_items]
    radius = min(2, bits)
    averages = {ties: torch.empty(num_queries, dtype=torch.float64) for ties in TIES}
    sums: dict[str, Any] = {}

    def add(name: str, values: np.ndarray) -> None:
        sums[name] = sums.get(name, 0) + values.sum(axis=0)

    for rows, block in _query_blocks(arguments, grades):
        items, graded = count_by_distance(*block, grades=grades, device=device)
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
        "zero_rows": sum(int((codes == 0).all(axis=1).sum()) for codes in _chunks(arguments[1])),
        "topk": None if limit == num_items else limit,
    }


def _average_precision(block: Matrices, device: torch.device | str | None, topk: int | None, ties: str) -> np.ndarray:
    if ties == "stable":
        return stable_average_precision(*block, cut(topk, len(block[1])), device=device)
    items, relevant = count_by_distance(*block, device=device)
    return expected_average_precision(items, relevant[:, 0], topk)


def _query_blocks(arguments: Matrices, grades: int = 1) -> Iterator[tuple[slice, Matrices]]:
    """The arguments with a slice of the queries at a time, so that memory does not grow with their number."""
    query_code, database_code, query_labels, database_labels = arguments
    for rows in query_blocks(len(query_code), query_code.shape[1], grades):
        yield rows, (query_code[rows], database_code, query_labels[rows], database_labels)


def _most_labels(labels: torch.Tensor) -> int:
    return max(int(rows.sum(axis=1).max()) for rows in _chunks(labels))


def _checked(query_code: Array, database_code: Array, query_labels: Array, database_labels: Array) -> Matrices:
    codes = _check_codes(query_code, "query_code"), _check_codes(database_code, "database_code")
    labels = _check_labels(query_labels, "query_labels"), _check_labels(database_labels, "database_labels")
    _check_match(*codes, *labels)
    return *codes, *labels


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
