"""Compiled counting by bit slices. Needs numba; `utils.hamming` imports this module only where it is installed.

The database is stored as bit planes, 64 items in a word: plane k holds bit k of every item. The distances to a query
are sums of planes, each flipped where the bit of the query is +1. Carry-save adders sum them for 64 items at a time: a
few logical operations for each plane, which the compiler turns into vector instructions. The histogram follows from
splitting the set of items by the bits of the sum and counting ones. Nothing of the size queries × items is stored.

Every inner loop runs over `WORDS` words, a constant, so that the compiler knows the lengths of the arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Words = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

WORDS = 64  # words of a plane in one block
BLOCK = 64 * WORDS  # items in one block

_ZERO, _ONE, _ONES = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFFFFFFFFFF)
_S1, _S2, _S4, _S56 = np.uint64(1), np.uint64(2), np.uint64(4), np.uint64(56)
_M1, _M2 = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_M4, _H01 = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)


@njit(nogil=True, inline="always")
def _ones_in(x: Any) -> Any:
    """Number of ones in a uint64, as int64. The compiler knows this form and emits the machine's own instruction."""
    x = x - ((x >> _S1) & _M1)
    x = (x & _M2) + ((x >> _S2) & _M2)
    x = (x + (x >> _S4)) & _M4
    return np.int64((x * _H01) >> _S56)


@njit(cache=True, nogil=True)
def pack_planes(values: npt.NDArray, planes: Words, full: Words, empty: Words) -> None:
    """Turn rows of numbers into bit planes; the outputs are zero on entry.

    Args:
        values: [n, K]; a bit is set where a value is > 0.
        planes: uint64 [blocks, planes · WORDS], planes ≥ K.
        full, empty: uint64 [blocks, WORDS]: bits are set for rows without a zero, and for rows of zeros.
    """
    columns = values.shape[1]
    words = np.empty(columns, np.uint64)
    for first in range(0, values.shape[0], 64):
        block, word = first // BLOCK, (first // 64) % WORDS
        words[:] = _ZERO
        for i in range(min(64, values.shape[0] - first)):
            row = values[first + i]
            shift = np.uint64(i)
            nonzero = 0
            for k in range(columns):
                words[k] |= np.uint64(row[k] > 0) << shift
                nonzero += row[k] != 0
            if nonzero == columns:
                full[block, word] |= _ONE << shift
            elif nonzero == 0:
                empty[block, word] |= _ONE << shift
        for k in range(columns):
            planes[block, k * WORDS + word] = words[k]


@njit(nogil=True)
def _add_four(planes: Words, first: int, flip: Words, use: Words, low: Words, carry: Words, index: int) -> None:
    """Add four planes to two planes of running sums (weights 1 and 2 in `low`); the carry (weight 4) is a new plane."""
    f0, f1, f2, f3 = flip[first], flip[first + 1], flip[first + 2], flip[first + 3]
    u0, u1, u2, u3 = use[first], use[first + 1], use[first + 2], use[first + 3]
    source = planes[first * WORDS : (first + 4) * WORDS]
    target = carry[index * WORDS : (index + 1) * WORDS]
    for w in range(WORDS):
        a = (source[w] ^ f0) & u0
        b = (source[WORDS + w] ^ f1) & u1
        c = (source[2 * WORDS + w] ^ f2) & u2
        d = (source[3 * WORDS + w] ^ f3) & u3
        one, two = low[w], low[WORDS + w]
        ab, cd = a ^ b, c ^ d
        partial = ab ^ one
        carry1 = (a & b) | (ab & one)
        carry2 = (c & d) | (cd & partial)
        low[w] = cd ^ partial
        carries = carry1 ^ carry2
        low[WORDS + w] = carries ^ two
        target[w] = (carry1 & carry2) | (carries & two)


@njit(nogil=True)
def _sum_planes(planes: Words, num_planes: int, flip: Words, use: Words, sums: Words, scratch: Words) -> None:
    """Sum `num_planes` (a multiple of 4) planes item by item; bit j of the sums goes to sums[j·WORDS:(j+1)·WORDS]."""
    sums[:] = _ZERO
    remaining = num_planes // 4
    for k in range(remaining):
        _add_four(planes, 4 * k, flip, use, sums[: 2 * WORDS], scratch[0], k)
    level, source = 1, 0
    keep, all_bits = np.zeros(remaining + 4, np.uint64), np.full(remaining + 4, _ONES)
    while remaining > 1:
        scratch[source, remaining * WORDS : (remaining + 3) * WORDS] = _ZERO
        remaining = (remaining + 3) // 4
        low = sums[2 * level * WORDS : (2 * level + 2) * WORDS]
        for k in range(remaining):
            _add_four(scratch[source], 4 * k, keep, all_bits, low, scratch[1 - source], k)
        level, source = level + 1, 1 - source
    sums[2 * level * WORDS : (2 * level + 1) * WORDS] = scratch[source, :WORDS]


@njit(nogil=True)
def _split(root: Words, sums: Words, num_bits: int, lowest: int, largest: int, masks: Words) -> None:
    """Split the items of `root` by their sum without its `lowest` last bits; those of value v go to masks[v·WORDS:].

    No sum is larger than `largest`, so larger values get no mask.
    """
    masks[:WORDS] = root
    for j in range(num_bits - 1, lowest - 1, -1):
        bit = sums[j * WORDS : (j + 1) * WORDS]
        last = largest >> j
        for v in range(last >> 1, -1, -1):  # downwards: a parent is read before its children overwrite its place
            parent = masks[v * WORDS : (v + 1) * WORDS]
            if 2 * v + 1 <= last:
                odd = masks[(2 * v + 1) * WORDS : (2 * v + 2) * WORDS]
                for w in range(WORDS):
                    odd[w] = parent[w] & bit[w]
            even = masks[2 * v * WORDS : (2 * v + 1) * WORDS]
            for w in range(WORDS):
                even[w] = parent[w] & ~bit[w]


@njit(nogil=True)
def _share_labels(labels: Words, query_labels: Integers, shared: Words) -> None:
    """Set shared[g] to the items with more than g of the labels of the query, for each of the len(shared) grades."""
    shared[:] = _ZERO
    for label in query_labels:
        plane = labels[label * WORDS : (label + 1) * WORDS]
        for g in range(len(shared) - 1, 0, -1):
            for w in range(WORDS):
                shared[g, w] |= shared[g - 1, w] & plane[w]
        for w in range(WORDS):
            shared[0, w] |= plane[w]


@njit(nogil=True)
def _flips(code: npt.NDArray[np.int8], flip: Words, use: Words) -> int:
    """Set how each plane is read: flipped where the query has +1, unused where it has 0. Returns the bits used."""
    flip[:] = _ZERO
    use[:] = _ZERO
    used = 0
    for k in range(len(code)):
        if code[k] != 0:
            use[k] = _ONES
            used += 1
        if code[k] > 0:
            flip[k] = _ONES
    return used


@njit(nogil=True)
def _bit_length(largest: int) -> int:
    bits = 0
    while (1 << bits) <= largest:
        bits += 1
    return bits


@njit(nogil=True)
def _workspace(bits: int, grades: int) -> tuple[Words, Words, Words, Words, Words, Words]:
    """Memory for one thread: sums, scratch, masks, shared, flip, use."""
    planes = (bits + 3) // 4 * 4
    sums = np.empty((_bit_length(bits) + 4) * WORDS, np.uint64)
    scratch = np.empty((2, (planes // 4 + 4) * WORDS), np.uint64)
    masks = np.empty((bits + 4) * WORDS, np.uint64)
    shared = np.empty((grades, WORDS), np.uint64)
    return sums, scratch, masks, shared, np.empty(planes, np.uint64), np.empty(planes, np.uint64)


@njit(cache=True, nogil=True)
def count_blocks(
    planes: Words, labels: Words, full: Words, empty: Words, codes: npt.NDArray[np.int8],
    label_start: Integers, label_index: Integers, first: int, last: int, items: Integers, relevant: Integers,
) -> None:  # fmt: skip
    """Add the items of the blocks to the histograms of queries first..last−1.

    Args:
        planes: uint64 [blocks, P·WORDS], P = K rounded up to a multiple of 4.
        labels: uint64 [blocks, C·WORDS].
        full, empty: uint64 [blocks, WORDS], the rows without a zero, and of zeros.
        codes: int8 [Q, K].
        label_start: int64 [Q+1], where the labels of each query start in `label_index`.
        label_index: int64, the labels of all queries one after the other.
        first, last: the queries.
        items: int64 [Q, 2K+1]: added to.
        relevant: int64 [Q, G, 2K+1]: added to; relevant[:, g] counts items with more than g shared labels.
    """
    bits = codes.shape[1]
    grades = relevant.shape[1]
    num_planes = planes.shape[1] // WORDS
    num_bits = _bit_length(bits)
    sums, scratch, masks, shared, flip, use = _workspace(bits, grades)
    for b in range(len(planes)):
        num_empty = 0
        for w in range(WORDS):
            num_empty += _ones_in(empty[b, w])
        for q in range(first, last):
            used = _flips(codes[q], flip, use)
            offset = bits - used  # distance in halves is (K − used) + 2 · (differences among the used bits)
            _share_labels(labels[b], label_index[label_start[q] : label_start[q + 1]], shared)
            _sum_planes(planes[b], num_planes, flip, use, sums, scratch)
            _split(full[b], sums, num_bits, 2, used, masks)
            for v in range((used >> 2) + 1):
                # four sums at once, by their last two bits; the counts of sets with a bit clear follow by difference
                mask = masks[v * WORDS : (v + 1) * WORDS]
                a0, a1, a2, a3 = 0, 0, 0, 0
                for w in range(WORDS):
                    m, low, high = mask[w], sums[w], sums[WORDS + w]
                    a0 += _ones_in(m)
                    a1 += _ones_in(m & low)
                    a2 += _ones_in(m & high)
                    a3 += _ones_in(m & low & high)
                _add_counts(items[q], offset + 8 * v, a0, a1, a2, a3)
                for g in range(grades):
                    share = shared[g]
                    a0, a1, a2, a3 = 0, 0, 0, 0
                    for w in range(WORDS):
                        m, low, high = mask[w] & share[w], sums[w], sums[WORDS + w]
                        a0 += _ones_in(m)
                        a1 += _ones_in(m & low)
                        a2 += _ones_in(m & high)
                        a3 += _ones_in(m & low & high)
                    _add_counts(relevant[q, g], offset + 8 * v, a0, a1, a2, a3)
            if num_empty:
                items[q, bits] += num_empty
                for g in range(grades):
                    for w in range(WORDS):
                        relevant[q, g, bits] += _ones_in(empty[b, w] & shared[g, w])


@njit(nogil=True)
def _add_counts(histogram: Integers, start: int, a0: int, a1: int, a2: int, a3: int) -> None:
    """Add the counts of four successive sums, given those of the items with (any, low, high, both) last bits set."""
    counts = (a0 - a1 - a2 + a3, a1 - a3, a2 - a3, a3)
    for i in range(4):
        if start + 2 * i < len(histogram):  # beyond it nothing was counted
            histogram[start + 2 * i] += counts[i]


@njit(cache=True, nogil=True)
def rank_blocks(
    planes: Words, labels: Words, full: Words, empty: Words, codes: npt.NDArray[np.int8],
    label_start: Integers, label_index: Integers, first: int, last: int, limit: int,
    next_rank: Integers, next_found: Integers, precisions: npt.NDArray[np.float64], found: Integers,
) -> None:  # fmt: skip
    """Visit the relevant items of the blocks in stable order, for queries first..last−1; every row is full or empty.

    Args:
        planes, labels, full, empty, codes, label_start, label_index, first, last: as for `count_blocks`.
        limit: R; items ranked after it are left out.
        next_rank: int64 [Q, 2K+1], items ranked before the next one at each distance: updated.
        next_found: int64 [Q, 2K+1], relevant items ranked before it: updated.
        precisions: float64 [Q], sum of the precision at the ranks of the relevant items ranked up to R: added to.
        found: int64 [Q], their number: added to.
    """
    bits = codes.shape[1]
    num_planes = planes.shape[1] // WORDS
    num_bits = _bit_length(bits)
    sums, scratch, masks, shared, flip, use = _workspace(bits, 1)
    for b in range(len(planes)):
        for q in range(first, last):
            used = _flips(codes[q], flip, use)
            _share_labels(labels[b], label_index[label_start[q] : label_start[q + 1]], shared)
            _sum_planes(planes[b], num_planes, flip, use, sums, scratch)
            _split(full[b], sums, num_bits, 0, used, masks)
            leaves = used + 1
            if used % 2 == 0:  # items of zeros lie K/2 away, among those with used/2 differences ...
                middle = masks[used // 2 * WORDS : (used // 2 + 1) * WORDS]
                for w in range(WORDS):
                    middle[w] |= empty[b, w]
            else:  # ... or alone
                masks[leaves * WORDS : (leaves + 1) * WORDS] = empty[b]
                leaves += 1
            for v in range(leaves):
                place = bits - used + 2 * v if v <= used else bits
                rank, hits, total = next_rank[q, place], next_found[q, place], 0.0
                if rank >= limit:
                    continue
                for w in range(WORDS):
                    mask = masks[v * WORDS + w]
                    hit = mask & shared[0, w]
                    while hit:
                        others = hit & (hit - _ONE)
                        position = rank + _ones_in(mask & ((hit ^ others) - _ONE)) + 1
                        if position > limit:
                            break
                        hits += 1
                        found[q] += 1
                        total += hits / position
                        hit = others
                    rank += _ones_in(mask)
                next_rank[q, place], next_found[q, place] = rank, hits
                precisions[q] += total
