"""Retrieval figures from histograms over Hamming distance: no sort, ties handled exactly.

Every function takes, a row a query, the number of database items and of relevant items at each distance,
nearest first. Items at one distance are tied; figures are expectations over a uniformly random order inside each
tie (McSherry & Najork, ECIR 2008; He, Lu & Sclaroff, CVPR 2018), or exact where no order matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Figures = npt.NDArray[np.float64]

# Below this many predecessors the harmonic series is tabulated; above it, five terms of its asymptotic series are
# exact to float64.
_TABULATED = 64
_EULER_GAMMA = 0.57721566490153286060651209008240243
_HARMONIC_TABLE = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, _TABULATED))])
# Probability of the values of X left out of the hypergeometric sum: exp(-45) < 3e-20.
_TAIL_EXPONENT = 45.0
# Elements of one temporary array of the hypergeometric step (float64: 2 MiB).
_HYPERGEOMETRIC_BLOCK = 1 << 18


def cut(topk: int | None, num_items: int) -> int:
    """The R of a figure @R: `topk`, or the whole database for None, for ≤ 0 and for ≥ `num_items`."""
    return num_items if topk is None or topk <= 0 else min(topk, num_items)


def harmonic_difference(start: npt.ArrayLike, count: npt.ArrayLike) -> Figures:
    """Σ_{j=1..count} 1/(start+j), elementwise, without the cancellation of a difference of two harmonic numbers.

    Uses H_m = γ + ln x + f(x), x = m + 1/2, f(x) = 1/(24x²) − 7/(960x⁴) + 31/(8064x⁶) − 127/(30720x⁸).
    """
    start, count = np.broadcast_arrays(np.asarray(start, np.float64), np.asarray(count, np.float64))
    first, last = start + 0.5, start + count + 0.5
    far = np.log1p(count / first) + (_harmonic_correction(last) - _harmonic_correction(first))
    near = _harmonic(start + count) - _harmonic(start)
    return np.where(start >= _TABULATED, far, near)


def _harmonic_correction(x: Figures) -> Figures:
    inverse = 1.0 / (x * x)
    return inverse * (1 / 24 - inverse * (7 / 960 - inverse * (31 / 8064 - inverse * (127 / 30720))))


def _harmonic(m: Figures) -> Figures:
    table = _HARMONIC_TABLE[np.minimum(m, _TABULATED - 1).astype(np.int64)]
    x = m + 0.5
    return np.where(m < _TABULATED, table, _EULER_GAMMA + np.log(x) + _harmonic_correction(x))


def expected_average_precision(items: Counts, relevant: Counts, topk: int | None = None) -> Figures:
    """AP@R of each query, expected over the order inside ties.

    Args:
        items: int [Q, B], items at each distance, nearest first.
        relevant: int [Q, B], relevant items at each distance.
        topk: R; None or ≤ 0 or beyond the database: all.

    Returns:
        float64 [Q]; 0 for a query without a relevant item in its first R.

    Source: the closed form of McSherry & Najork for whole ties, summed over the hypergeometric law of the number of
    relevant items kept where R falls inside a tie (docs/evaluation.md, "Expected average precision").
    """
    used = items.any(axis=0)  # distances at which no query has an item need no arithmetic
    items, relevant = items[:, used], relevant[:, used]
    before = np.cumsum(items, axis=1) - items  # [Q, B], s
    relevant_before = np.cumsum(relevant, axis=1) - relevant  # [Q, B], R₀
    limit = cut(topk, int(items[0].sum()))
    whole = before + items <= limit
    precisions = np.where(whole, _tie_precision_sum(items, relevant, before, relevant_before), 0.0).sum(axis=1)
    found = np.where(whole, relevant, 0).sum(axis=1)
    average = precisions / np.maximum(found, 1)

    query, tie = np.nonzero(~whole & (before < limit))  # at most one tie a query straddles the cut
    if len(query):
        average[query] = _expected_at_cut(
            items[query, tie], relevant[query, tie], limit - before[query, tie],
            before[query, tie], found[query], precisions[query],
        )  # fmt: skip
    return average


def _tie_precision_sum(items: npt.NDArray, relevant: npt.NDArray, before: npt.NDArray, relevant_before: npt.NDArray):
    """E[Σ precision] over the relevant items of a tie kept whole; 0 for an empty tie. All arguments alike in shape."""
    h1 = harmonic_difference(before, items)
    h2 = items - (before + 1) * h1
    others = (relevant - 1) / np.maximum(items - 1, 1)
    return relevant / np.maximum(items, 1) * ((relevant_before + 1) * h1 + others * h2)


def _expected_at_cut(
    items: Counts, relevant: Counts, kept: Counts, before: Counts, relevant_before: Counts, precisions: Figures
) -> Figures:
    """E[AP@R] of queries whose cut keeps `kept` of the `items` of a tie; all arguments [q].

    X, the number of relevant items kept, is hypergeometric. Its probabilities are had from the mode outwards by the
    ratio of neighbours, which loses no digits (log-gamma of 10⁵ would lose five), over the values that matter.
    """
    smallest = np.minimum(np.minimum(kept, items - kept), np.minimum(relevant, items - relevant))
    reach = np.ceil(np.sqrt(_TAIL_EXPONENT / 2 * smallest)).astype(np.int64) + 1  # Hoeffding, by the law's symmetries
    mode = (kept + 1) * (relevant + 1) // (items + 2)
    result = np.empty(len(items))
    order = np.argsort(reach, kind="stable")  # queries of like reach share a block
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


def expected_within(items: Counts, weights: npt.NDArray, cutoffs: Sequence[int]) -> Figures:
    """Expected total weight of the first N items of each ranking, for each N.

    Args:
        items: int [Q, B]. weights: [Q, B], total weight of the items at each distance, e.g. how many are relevant.
        cutoffs: the Ns.

    Returns:
        float64 [Q, len(cutoffs)].
    """
    before = np.cumsum(items, axis=1) - items
    mean = weights / np.maximum(items, 1)
    return np.stack([(mean * np.clip(n - before, 0, items)).sum(axis=1) for n in cutoffs], axis=1)


def within_radius(items: Counts, relevant: Counts) -> tuple[Figures, Figures, Counts]:
    """Precision, recall and number of items within each Hamming radius.

    Args:
        items, relevant: int [Q, 2K+1], bin j at distance j/2.

    Returns:
        precision (0 for an empty ball) and recall (0 for a query without a relevant item), float64 [Q, K+1], and the
        number of items within radius 0..K, int64 [Q, K+1].
    """
    inside, found = np.cumsum(items, axis=1)[:, ::2], np.cumsum(relevant, axis=1)[:, ::2]
    return found / np.maximum(inside, 1), found / np.maximum(found[:, -1:], 1), inside


def expected_ndcg(items: Counts, graded: Counts, cutoffs: Sequence[int]) -> Figures:
    """NDCG@N of each query, expected over the order inside ties.

    The gain of an item that shares g labels with the query is 2^g − 1, the discount of rank i is 1/log₂(1 + i).

    Args:
        items: int [Q, B]. graded: int [Q, G, B]; graded[:, g] counts the items sharing more than g labels.
        cutoffs: the Ns.

    Returns:
        float64 [Q, len(cutoffs)]; 0 for a query without a relevant item.

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
