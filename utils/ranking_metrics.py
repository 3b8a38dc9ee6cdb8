"""Retrieval metrics from histograms over Hamming distance: nothing is sorted, and ties are exact.

Each function takes the number of `items` and of `relevant` items at each distance, nearest first, one row for each
query. Items at the same distance are tied. The metrics are expectations over a uniformly random order of the tied items
(McSherry & Najork, ECIR 2008; He, Lu & Sclaroff, CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Harmonic numbers below this index come from a table; above it, five terms of the asymptotic series are exact.
_TABULATED = 64
_EULER_GAMMA = 0.57721566490153286060651209008240243
_HARMONIC_TABLE = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, _TABULATED))])
# The probability of the values that the hypergeometric sum leaves out is below exp(-45) < 3e-20.
_TAIL_EXPONENT = 45.0
# Elements of one temporary array of the hypergeometric step (float64: 2 MiB).
_HYPERGEOMETRIC_BLOCK = 1 << 18


def cut(topk: int | None, num_items: int) -> int:
    """R of a metric @R: `topk`, or `num_items` for None, for 0 and less, and for more than `num_items`."""
    return num_items if topk is None or topk <= 0 else min(topk, num_items)


def harmonic_difference(start: npt.ArrayLike, count: npt.ArrayLike) -> Floats:
    """Σ_{j=1..count} 1/(start+j), elementwise, float64; subtracting two harmonic numbers would lose digits.

    Uses H_m = γ + ln x + f(x), x = m + 1/2, f(x) = 1/(24x²) − 7/(960x⁴) + 31/(8064x⁶) − 127/(30720x⁸).
    """
    start, count = np.broadcast_arrays(np.asarray(start, np.float64), np.asarray(count, np.float64))
    first, last = start + 0.5, start + count + 0.5
    far = np.log1p(count / first) + (_harmonic_correction(last) - _harmonic_correction(first))
    near = _harmonic(start + count) - _harmonic(start)
    return np.where(start >= _TABULATED, far, near)


def _harmonic_correction(x: Floats) -> Floats:
    inverse = 1.0 / (x * x)
    return inverse * (1 / 24 - inverse * (7 / 960 - inverse * (31 / 8064 - inverse * (127 / 30720))))


def _harmonic(m: Floats) -> Floats:
    table = _HARMONIC_TABLE[np.minimum(m, _TABULATED - 1).astype(np.int64)]
    x = m + 0.5
    return np.where(m < _TABULATED, table, _EULER_GAMMA + np.log(x) + _harmonic_correction(x))


def expected_average_precision(
    items: Counts, relevant: Counts, topk: int | None = None, *, denominator: str = "retrieved"
) -> Floats:
    """AP@R of each query, float64 [Q], expected over the order of tied items; 0 without a relevant item.

    Args:
        items, relevant: int [Q, B].
        topk: R; None, ≤ 0 or more than the database: the whole database.
        denominator: "retrieved": the number of relevant items among the first R; "relevant": of all relevant items.

    Source: the closed form of McSherry & Najork for whole ties; where R falls inside a tie, its mean over the
    hypergeometric distribution of the number of relevant items kept (docs/evaluation.md, "Expected average precision").
    """
    used = items.any(axis=0)  # skip distances at which no query has an item
    items, relevant = items[:, used], relevant[:, used]
    before = np.cumsum(items, axis=1) - items  # [Q, B], s
    relevant_before = np.cumsum(relevant, axis=1) - relevant  # [Q, B], R₀
    limit = cut(topk, int(items[0].sum()))
    if denominator == "relevant":  # it does not depend on the order, so the mean of the sum is enough
        kept = np.clip(limit - before, 0, items)
        precisions = _tie_precision_sum(items, relevant, before, relevant_before, kept).sum(axis=1)
        return precisions / np.maximum(relevant.sum(axis=1), 1)
    whole = before + items <= limit
    precisions = np.where(whole, _tie_precision_sum(items, relevant, before, relevant_before, items), 0.0).sum(axis=1)
    found = np.where(whole, relevant, 0).sum(axis=1)
    average = precisions / np.maximum(found, 1)

    query, tie = np.nonzero(~whole & (before < limit))  # the tie that the cut divides: at most one for each query
    if len(query):
        average[query] = _expected_at_cut(
            items[query, tie], relevant[query, tie], limit - before[query, tie],
            before[query, tie], found[query], precisions[query],
        )  # fmt: skip
    return average


def _tie_precision_sum(
    items: Counts, relevant: Counts, before: Counts, relevant_before: Counts, kept: Counts
) -> Floats:
    """E[Σ precision] over the relevant ones among the first `kept` items of ties; all arguments have the same shape."""
    h1 = harmonic_difference(before, kept)
    h2 = kept - (before + 1) * h1
    others = (relevant - 1) / np.maximum(items - 1, 1)
    return relevant / np.maximum(items, 1) * ((relevant_before + 1) * h1 + others * h2)


def _expected_at_cut(
    items: Counts, relevant: Counts, kept: Counts, before: Counts, relevant_before: Counts, precisions: Floats
) -> Floats:
    """E[AP@R] of queries whose cut keeps `kept` of the `items` of a tie; all arguments [q].

    X, the number of relevant items kept, is hypergeometric. Its probabilities are computed from the mode outwards by
    the ratio of neighbouring ones, as far as they matter. This loses no digits; log-gamma of 10⁵ would lose five.
    """
    smallest = np.minimum(np.minimum(kept, items - kept), np.minimum(relevant, items - relevant))
    # Hoeffding's bound, with the symmetries of X.
    reach = np.ceil(np.sqrt(_TAIL_EXPONENT / 2 * smallest)).astype(np.int64) + 1
    mode = (kept + 1) * (relevant + 1) // (items + 2)
    result = np.empty(len(items))
    order = np.argsort(reach, kind="stable")  # queries of similar reach share a block
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * (2 * reach[order[stop]] + 1) <= _HYPERGEOMETRIC_BLOCK:
            stop += 1
        chosen = order[start:stop]
        span = int(reach[chosen].max())
        n, r, m = (array[chosen, None].astype(np.float64) for array in (items, relevant, kept))
        centre = mode[chosen, None].astype(np.float64)
        step = np.arange(span)
        x = centre + step
        up = (r - x) * (m - x) / ((x + 1) * (n - r - m + x + 1))  # P(x+1)/P(x); 0 at the end of the support
        x = centre - step
        down = x * (n - r - m + x) / ((r - x + 1) * (m - x + 1))  # P(x-1)/P(x)
        right, left = np.cumprod(up, axis=1), np.cumprod(down, axis=1)
        probability = np.concatenate([left[:, ::-1], np.ones_like(centre), right], axis=1)
        x = centre + np.arange(-span, span + 1)

        s, found, head = (array[chosen, None].astype(np.float64) for array in (before, relevant_before, precisions))
        h1 = harmonic_difference(s, m)
        h2 = m - (s + 1) * h1
        inside = x / m * ((found + 1) * h1 + (x - 1) / np.maximum(m - 1, 1) * h2)
        value = np.where(found + x > 0, (head + inside) / np.where(found + x > 0, found + x, 1), 0.0)
        result[chosen] = (probability * value).sum(axis=1) / probability.sum(axis=1)
        start = stop
    return result


def expected_within(items: Counts, weights: npt.NDArray, cutoffs: Sequence[int]) -> Floats:
    """Expected total weight of the first N items of each ranking, float64 [Q, Ns]; N in `cutoffs`.

    `items` int [Q, B] is the number of items at each distance and `weights` [Q, B] their total weight.
    """
    before = np.cumsum(items, axis=1) - items
    mean = weights / np.maximum(items, 1)
    return np.stack([(mean * np.clip(n - before, 0, items)).sum(axis=1) for n in cutoffs], axis=1)


def within_radius(items: Counts, relevant: Counts) -> tuple[Floats, Floats, Counts]:
    """Precision, recall and number of items within each Hamming radius 0..K, [Q, K+1]; 0 instead of 0/0.

    `items` and `relevant` are int [Q, 2K+1]; bin j is distance j/2.
    """
    inside, found = np.cumsum(items, axis=1)[:, ::2], np.cumsum(relevant, axis=1)[:, ::2]
    return found / np.maximum(inside, 1), found / np.maximum(found[:, -1:], 1), inside


def expected_ndcg(items: Counts, graded: Counts, cutoffs: Sequence[int]) -> Floats:
    """NDCG@N of each query, float64 [Q, Ns], expected over the order of tied items; 0 without a relevant item.

    The gain of an item that shares g labels with the query is 2^g − 1, the discount of rank i is 1/log₂(1 + i).

    Args:
        items: int [Q, B].
        graded: int [Q, G, B]; graded[:, g] counts the items that share more than g labels with the query.
        cutoffs: the Ns.

    Source: Järvelin & Kekäläinen, TOIS 2002; ties as in McSherry & Najork, ECIR 2008.
    """
    added_gain = 2.0 ** np.arange(graded.shape[1])  # gain(g+1) − gain(g)
    gains = np.einsum("qgb,g->qb", graded, added_gain)
    total = graded.sum(axis=2)  # [Q, G]
    end = np.cumsum(items, axis=1)
    mean = gains / np.maximum(items, 1)
    discounts = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, max(cutoffs) + 2)))])
    result = []
    for n in cutoffs:
        kept = discounts[np.minimum(end, n)] - discounts[np.minimum(end - items, n)]
        ideal = (discounts[np.minimum(total, n)] * added_gain).sum(axis=1)
        result.append((mean * kept).sum(axis=1) / np.where(ideal > 0, ideal, 1.0))
    return np.stack(result, axis=1)
