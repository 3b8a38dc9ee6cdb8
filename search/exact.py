"""Exact search in packed codes by Hamming distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_ROWS_AT_ONCE = 1 << 16  # a block of so many codes stays in the cache of the processor

Rows = npt.NDArray[np.int64]


def as_words(codes: npt.NDArray[np.uint8]) -> list[np.ndarray]:
    """Packed codes uint8 [n, bytes] as words: one array [n] of the shortest unsigned type, or several of uint64.

    Nothing is copied where a code has 1, 2, 4 or 8 bytes.
    """
    codes = np.asarray(codes)
    width = codes.shape[1]
    size = next((size for size in (1, 2, 4, 8) if width <= size), 8)
    if width % size:
        codes = np.pad(codes, ((0, 0), (0, -width % size)))
    columns = np.ascontiguousarray(codes).view(f"u{size}")  # the order of bits in a word does not change distances
    return [np.ascontiguousarray(column) for column in columns.T]


def search_words(
    words: Sequence[np.ndarray], queries: Sequence[np.ndarray], count: int, k: int, radius: int
) -> list[tuple[Rows, Rows]]:
    """`Index.search` on words (`as_words`) of `count` codes, for k ≥ 1 and a radius ≥ 0.

    Rows are read in ascending order, so a later row at the distance of the k-th result so far loses the tie. Only
    strictly nearer rows are kept, and after a few blocks there are very few.
    """
    num_queries = len(queries[0])
    limits = [radius + 1] * num_queries  # only smaller distances can still matter
    found: list[list[tuple[Rows, npt.NDArray[Any]]]] = [[] for _ in range(num_queries)]
    held = [0] * num_queries
    for start in range(0, count, _ROWS_AT_ONCE):
        block = [word[start : start + _ROWS_AT_ONCE] for word in words]
        for query in range(num_queries):
            distance = _distances(block, [word[query] for word in queries])
            near = np.flatnonzero(distance < limits[query])
            if len(near) > 2 * k:  # the first block: sorting all of it would take longer than all other blocks
                counts = np.cumsum(np.bincount(distance[near]))
                near = near[distance[near] <= np.searchsorted(counts, k)]
            if not len(near):
                continue
            found[query].append((near + start, distance[near]))
            held[query] += len(near)
            if held[query] >= 2 * k:  # not for every new row: with a large k sorting would cost more than counting
                found[query] = [_nearest(found[query], k)]
                held[query] = k
                limits[query] = int(found[query][0][1][-1])
    return [_nearest(parts, k) for parts in found]


def _nearest(parts: Sequence[tuple[Rows, npt.NDArray[Any]]], k: int) -> tuple[Rows, Rows]:
    """The first k by (distance, row) of parts in which rows at equal distance ascend."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(distances, kind="stable")[:k]  # numpy sorts short integers by radix
    return rows[order], distances[order].astype(np.int64)


def _distances(block: Sequence[np.ndarray], query: Sequence[np.unsignedinteger]) -> np.ndarray:
    """Hamming distances [n] of words to one query."""
    total: np.ndarray = np.bitwise_count(block[0] ^ query[0])
    for word, own in zip(block[1:], query[1:], strict=True):
        total = np.add(total, np.bitwise_count(word ^ own), dtype=np.int32)
    return total
