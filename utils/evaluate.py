"""Metrics of a ranking by Hamming distance: mAP and others (docs/evaluation.md has the formulas)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.evaluation_input import Array, checked, chunks
from utils.hamming import Device, Matrices, count_by_distance, query_blocks, stable_precisions
from utils.ranking_metrics import cut, expected_average_precision, expected_ndcg, expected_within, within_radius

TIES = ("expected", "stable")
# What AP@R divides the sum of precisions by: the relevant items among the first R, or those of the whole database.
DENOMINATORS = ("retrieved", "relevant")
# What a query without a relevant item is in the means over queries: 0, or left out.
WITHOUT_RELEVANT = ("zero", "skip")
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
    denominator: str = "retrieved",
    without_relevant: str = "zero",
) -> float:
    """mAP@R: the mean of `average_precision` over all queries; arguments as there, and for `evaluate_codes`."""
    convention = _Convention(denominator, without_relevant)
    matrices = checked(query_code, database_code, query_labels, database_labels)
    return convention.mean(*_average_precisions(matrices, device, topk, ties, convention.denominator))


def average_precision(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    device: Device = None,
    topk: int | None = None,
    *,
    ties: str = "expected",
    denominator: str = "retrieved",
) -> torch.Tensor:
    """AP@R of each query in the ranking of the database by Hamming distance d = (K − q·b)/2.

    Args:
        query_code, database_code: [Q, K] and [D, K], entries −1 and +1; a row of zeros was never encoded.
        query_labels, database_labels: [Q, C] and [D, C], multi-hot, who shares a label is relevant; or class numbers
            [Q] and [D].
        device: where to count; None: the CPU.
        topk: R; None, ≤ 0 or ≥ D: the whole database.
        ties: "expected": the expectation over the order of tied items; "stable": ties in database order.
        denominator: AP@R is the sum of the precision at the ranks of the relevant items among the first R, divided by:
            "retrieved": their number; "relevant": the number of relevant items in the whole database.

    Returns:
        float64 [Q], on the CPU; 0 without a relevant item.

    Warns, raises:
        as `utils.evaluation_input.checked`; ValueError where `ties` or `denominator` is unknown.

    Source: McSherry & Najork, ECIR 2008; the formulas are in docs/evaluation.md.
    """
    _require_one_of("denominator", denominator, DENOMINATORS)
    matrices = checked(query_code, database_code, query_labels, database_labels)
    return torch.from_numpy(_average_precisions(matrices, device, topk, ties, denominator)[0])


def evaluate_codes(
    query_code: Array,
    database_code: Array,
    query_labels: Array,
    database_labels: Array,
    *,
    topk: int | None = None,
    device: Device = None,
    denominator: str = "retrieved",
    without_relevant: str = "zero",
) -> dict[str, Any]:
    """All metrics of docs/evaluation.md, as plain numbers, lists and dicts; arguments as for `average_precision`.

    All are means over the queries; one without a relevant item counts as 0 (`without_relevant` "zero") or is left out
    ("skip").

    Returns:
        "map": {"expected", "stable"}, mAP@R;
        "precision_recall": {"precision", "recall"}, lists by Hamming radius 0..K;
        "precision_at", "recall_at": {N: value}, for all N of `CUTOFFS` up to D;
        "radius_2": {"precision", "recall", "empty_share"}, the last the share of queries without an item in the radius;
        "ndcg_at": {N: value}, only if an item has more than one label;
        "queries_without_relevant"; "zero_rows", the number of database rows that are all 0; "topk", R or None for all;
        "denominator" and "without_relevant", the conventions of these numbers.
    """
    convention = _Convention(denominator, without_relevant)
    matrices = checked(query_code, database_code, query_labels, database_labels)
    bits, num_items = matrices.query_code.shape[1], len(matrices.database_code)
    most_labels = _most_labels(matrices.query_labels)
    multi_label = max(most_labels, _most_labels(matrices.database_labels)) > 1
    grades = max(1, most_labels) if multi_label else 1
    cutoffs = [n for n in CUTOFFS if n <= num_items]
    radius = min(2, bits)
    averages: dict[str, list[np.ndarray]] = {ties: [] for ties in TIES}
    totals: list[np.ndarray] = []
    sums: dict[str, Any] = {}

    def add(name: str, values: np.ndarray) -> None:
        sums[name] = sums.get(name, 0) + convention.kept(values, total).sum(axis=0)

    for _, block in query_blocks(matrices, grades):
        items, graded = count_by_distance(block, grades=grades, device=device)
        relevant = graded[:, 0]
        total = relevant.sum(axis=1)
        found = expected_within(items, relevant, cutoffs)
        precision, recall, inside = within_radius(items, relevant)
        totals.append(total)
        averages["expected"].append(expected_average_precision(items, relevant, topk, denominator=denominator))
        averages["stable"].append(_stable_average_precision(block, device, topk, total, denominator))
        add("precision_at", found / cutoffs)
        add("recall_at", found / np.maximum(total, 1)[:, None])
        add("precision", precision)
        add("recall", recall)
        add("empty", inside[:, radius] == 0)
        if multi_label:
            add("ndcg_at", expected_ndcg(items, graded, cutoffs))

    num_relevant = np.concatenate(totals)
    num_averaged = len(convention.kept(num_relevant, num_relevant))

    def mean(name: str) -> Any:
        return (sums[name] / num_averaged).tolist()

    report: dict[str, Any] = {
        "map": {ties: convention.mean(np.concatenate(values), num_relevant) for ties, values in averages.items()},
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
        "queries_without_relevant": int((num_relevant == 0).sum()),
        "zero_rows": sum(int((codes == 0).all(axis=1).sum()) for codes in chunks(matrices.database_code)),
        "topk": None if limit == num_items else limit,
        "denominator": denominator,
        "without_relevant": without_relevant,
    }


@dataclass(frozen=True)
class _Convention:
    """How AP and the means over queries are taken."""

    denominator: str = DENOMINATORS[0]
    without_relevant: str = WITHOUT_RELEVANT[0]

    def __post_init__(self) -> None:
        _require_one_of("denominator", self.denominator, DENOMINATORS)
        _require_one_of("without_relevant", self.without_relevant, WITHOUT_RELEVANT)

    def kept(self, values: np.ndarray, num_relevant: np.ndarray) -> np.ndarray:
        """The `values` [Q, ...] of the queries that are averaged; `num_relevant` [Q], relevant items of each."""
        return values if self.without_relevant == "zero" else values[num_relevant > 0]

    def mean(self, values: np.ndarray, num_relevant: np.ndarray) -> float:
        """The mean of `values` [Q] over the queries that are averaged; a ValueError if there is none."""
        kept = self.kept(values, num_relevant)
        if not len(kept):
            raise ValueError("No query has a relevant item; nothing is left to average.")
        return float(kept.mean())


def _require_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}.")


def _average_precisions(
    matrices: Matrices, device: Device, topk: int | None, ties: str, denominator: str
) -> tuple[np.ndarray, np.ndarray]:
    """AP@R and the number of relevant items of each query: float64 and int64 [Q]."""
    _require_one_of("ties", ties, TIES)
    averages, totals = [], []
    for _, block in query_blocks(matrices):
        items, relevant = count_by_distance(block, device=device)
        totals.append(relevant[:, 0].sum(axis=1))
        if ties == "stable":
            averages.append(_stable_average_precision(block, device, topk, totals[-1], denominator))
        else:
            averages.append(expected_average_precision(items, relevant[:, 0], topk, denominator=denominator))
    return np.concatenate(averages), np.concatenate(totals)


def _stable_average_precision(
    block: Matrices, device: Device, topk: int | None, total: np.ndarray, denominator: str
) -> np.ndarray:
    precisions, found = stable_precisions(block, cut(topk, len(block.database_code)), device=device)
    return precisions / np.maximum(found if denominator == "retrieved" else total, 1)


def _most_labels(labels: torch.Tensor) -> int:
    """The largest number of labels of an item; 1 where they are class numbers."""
    return 1 if labels.ndim == 1 else max(int(rows.sum(axis=1).max()) for rows in chunks(labels))
