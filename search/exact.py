"""Exact search in packed codes by Hamming distance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_ROWS_AT_ONCE = 1 << 16  # a block of so many codes stays in the cache of the processor

Codes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """The m images found for one query, by (distance, row): int64 [m] twice, and their names and labels ("": none)."""

    rows: Rows
    distances: Rows
    names: list[str]
    labels: list[str]

    def __iter__(self) -> Iterator[tuple[int, int, str, str]]:
        return zip(self.rows.tolist(), self.distances.tolist(), self.names, self.labels, strict=True)


@dataclass(frozen=True)
class Collection:
    """All n images of a store in memory: rows int64 [n], ascending, codes uint8 [n, ceil(K/8)], names and labels."""

    rows: Rows
    codes: Codes
    names: pa.ChunkedArray
    labels: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def _words(self) -> list[np.ndarray]:
        return as_words(self.codes)

    def position_of(self, row: int) -> int:
        """Where image `row` is in the arrays; KeyError if it is not in the store, or no longer."""
        position = int(np.searchsorted(self.rows, row))
        if position == len(self) or self.rows[position] != row:
            raise KeyError(row)
        return position

    def item(self, position: int) -> tuple[int, str, str]:
        """(row, name, label) of one image."""
        return int(self.rows[position]), self.names[position].as_py(), self.labels[position].as_py()

    def search(self, queries: Codes, k: int, radius: int, label: str | None = None) -> list[Neighbours]:
        """The nearest images to each of the codes uint8 [q, ceil(K/8)], among those with the label if one is given."""
        words, chosen = self._words, None
        if label is not None:
            chosen = np.flatnonzero(pc.equal(self.labels, label).to_numpy(zero_copy_only=False))
            words = [word[chosen] for word in words]
        results = []
        for positions, distances in search_words(words, as_words(queries), k, radius):
            places = positions if chosen is None else chosen[positions]
            names, labels = (column.take(pa.array(places)).to_pylist() for column in (self.names, self.labels))
            results.append(Neighbours(self.rows[places], distances, names, labels))
        return results


def as_words(codes: Codes) -> list[np.ndarray]:
    """Codes uint8 [n, bytes] as one array [n] of the shortest unsigned type, not copied, or as several of uint64."""
    width = codes.shape[1]
    size = next((size for size in (1, 2, 4, 8) if width <= size), 8)
    padded = np.pad(codes, ((0, 0), (0, -width % size))) if width % size else codes
    columns = np.ascontiguousarray(padded).view(f"u{size}")  # the order of bits in a word does not change distances
    return [np.ascontiguousarray(column) for column in columns.T]


def search_words(words: list[np.ndarray], queries: list[np.ndarray], k: int, radius: int) -> list[tuple[Rows, Rows]]:
    """The k nearest codes to each query within the radius (bits): positions and distances, int64 [m], ties by position.

    Positions are read in ascending order, so a later one at the distance of the k-th result so far loses the tie. Only
    strictly nearer ones are kept, and after a few blocks there are very few. `words` and `queries`: of `as_words`.
    """
    found: list[list[tuple[Rows, Any]]] = [[(np.zeros(0, np.int64), np.zeros(0, np.uint8))] for _ in queries[0]]
    limits = [radius + 1 for _ in queries[0]]  # only smaller distances can still matter
    for start in range(0, len(words[0]), _ROWS_AT_ONCE):
        block = [word[start : start + _ROWS_AT_ONCE] for word in words]
        for query, parts in enumerate(found):
            bits: list[Any] = [np.bitwise_count(word ^ own[query]) for word, own in zip(block, queries, strict=True)]
            distance: Any = bits[0] if len(bits) == 1 else np.sum(bits, axis=0, dtype=np.uint16)
            near = np.flatnonzero(distance < limits[query])
            if len(near):
                parts.append((near + start, distance[near]))
            if sum(len(rows) for rows, _ in parts) >= 2 * k:  # not for every new row, as sorting takes longer
                parts[:] = [_nearest(parts, k)]
                limits[query] = int(parts[0][1][-1])
    return [(rows, distances.astype(np.int64)) for rows, distances in (_nearest(parts, k) for parts in found)]


def _nearest(parts: list[tuple[Rows, Any]], k: int) -> tuple[Rows, Any]:
    """The first k by (distance, row) of parts in which rows at equal distance ascend."""
    rows, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(distances, kind="stable")[:k]  # numpy sorts short integers by radix
    return rows[order], distances[order]
