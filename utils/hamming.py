"""Count the items of a database by their Hamming distance to each query: histograms, and ranks in stable order.

The distance is d = (K − q·b)/2. For codes of −1 and +1 it is the Hamming distance. The same formula holds for codes
with zeros: an item of zeros has distance K/2 from everything. So histograms have 2K+1 bins, one for each half unit. A
row is zero in all bits or in none.

Three engines give the same integers, and none holds the Q × D matrix of distances: bit slices compiled by numba
(`utils.hamming_compiled`); packed words in numpy; a matrix product in torch, on a GPU and for rows with zeros.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_MOST_ROWS = 1 << 16  # database rows packed at once, ...
_NUMBERS_PER_CHUNK = 1 << 23  # ... fewer where codes and labels are wide
_ROWS_OF_ONE_THREAD = 1 << 15  # torch.bincount of more starts its own threads, which slow ours down
_PAIRS_WORTH_COMPILING = 1 << 23  # numpy counts so many in about the time that numba takes to load
_HISTOGRAM_BYTES = 1 << 22  # histograms of one block of queries
_PAIRS_PER_BLOCK = {"numpy": 1 << 17, "torch": 1 << 20, "cuda": 1 << 25}  # query-item pairs held at once

Device = torch.device | str | None
Words = npt.NDArray[np.unsignedinteger]
Integers = npt.NDArray[np.int64]


class Matrices(NamedTuple):
    """Codes [Q, K] and [D, K] of −1, 0 and +1; labels multi-hot [Q, C] and [D, C], or class numbers [Q] and [D].

    Class numbers are int64 and count from 0. They take no memory of the size D × C, however many there are.
    """

    query_code: torch.Tensor
    database_code: torch.Tensor
    query_labels: torch.Tensor
    database_labels: torch.Tensor

    def of_queries(self, rows: slice) -> Matrices:
        """The same database with some of the queries."""
        return self._replace(query_code=self.query_code[rows], query_labels=self.query_labels[rows])

    def of_items(self, rows: slice | torch.Tensor) -> Matrices:
        """The same queries with some rows of the database, labels multi-hot: a column for each class that both have."""
        part = self._replace(database_code=self.database_code[rows], database_labels=self.database_labels[rows])
        if part.query_labels.ndim == 2:
            return part
        shared = np.intersect1d(part.query_labels, part.database_labels)
        classes = torch.from_numpy(
            shared if len(shared) else np.array([-1])
        )  # a class of no item: labels need a column
        one_hot = (labels[:, None] == classes for labels in (part.query_labels, part.database_labels))
        return Matrices(part.query_code, part.database_code, *one_hot)


def default_engine(num_pairs: int, device: Device = None) -> str:
    """The fastest engine for `num_pairs` pairs: torch on a GPU; else compiled, if numba is installed and worth it."""
    if device is not None and torch.device(device).type != "cpu":
        return "torch"
    worth_it = num_pairs >= _PAIRS_WORTH_COMPILING and importlib.util.find_spec("numba") is not None
    return "compiled" if worth_it else "numpy"


def query_blocks(matrices: Matrices, grades: int = 1) -> Iterator[tuple[slice, Matrices]]:
    """Slices of the queries, so small that the histograms of one take about 4 MiB, each with its part of `matrices`."""
    num_queries, bits = matrices.query_code.shape
    size = max(1, _HISTOGRAM_BYTES // (8 * (2 * bits + 1) * (1 + grades)))
    for start in range(0, num_queries, size):
        rows = slice(start, min(start + size, num_queries))
        yield rows, matrices.of_queries(rows)


def count_by_distance(matrices: Matrices, *, grades: int = 1, device: Device = None) -> tuple[Integers, Integers]:
    """Histograms of the database over distance, one row for each query; the values are not checked.

    Args:
        grades: G; 1 counts relevant items, more count by the number of shared labels.
        device: where to count; None: the CPU.

    Returns:
        items: int64 [Q, 2K+1]; bin j counts the items at distance j/2.
        relevant: int64 [Q, G, 2K+1]; [:, g] counts those that share more than g labels with the query.
    """
    num_queries, bits = matrices.query_code.shape
    engine = default_engine(num_queries * len(matrices.database_code), device)
    items = np.zeros((num_queries, 2 * bits + 1), np.int64)
    relevant = np.zeros((num_queries, grades, 2 * bits + 1), np.int64)
    for rows in _chunks(matrices, _ROWS_OF_ONE_THREAD if engine == "numpy" else _MOST_ROWS):
        ENGINES[engine](matrices.of_items(rows), items, relevant, device)
    return items, relevant


def stable_precisions(
    matrices: Matrices, limit: int, *, device: Device = None
) -> tuple[npt.NDArray[np.float64], Integers]:
    """Σ precision at the ranks of the relevant items among the first `limit`, ties in database order, and their number.

    float64 and int64 [Q]. The compiled engine counts twice: once for the first rank at each distance, and once to visit
    the relevant items. The others sort.
    """
    if default_engine(len(matrices.query_code) * len(matrices.database_code), device) == "compiled":
        return _rank_compiled(matrices, limit)
    return _rank_sorted(matrices, limit, device)


def _chunks(matrices: Matrices, most: int = _MOST_ROWS) -> list[slice]:
    """Slices of the database that limit the memory; multiples of 4096 rows, the block of the bit slices."""
    labels = matrices.query_labels
    width = matrices.database_code.shape[1] + (labels.shape[1] if labels.ndim == 2 else len(labels.unique()))
    rows = min(max(_NUMBERS_PER_CHUNK // width // 4096 * 4096, 4096), most)
    return [slice(start, start + rows) for start in range(0, len(matrices.database_code), rows)]


def _in_threads(work: Callable[[slice], None], length: int, size: int | None = None) -> None:
    """Call `work` on slices of range(length), four for each thread of torch or of a given size."""
    threads = torch.get_num_threads()
    if threads == 1:
        work(slice(0, length))
        return
    size = size or -(-length // (4 * threads))  # four: enough to keep all busy, few enough to be cheap
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, [slice(start, min(start + size, length)) for start in range(0, length, size)]))


def to_numpy(rows: torch.Tensor) -> np.ndarray:
    """A contiguous array of a type that compiled code and numpy both know; copied only if necessary."""
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.to(torch.float32)
    array = rows.contiguous().cpu().numpy()
    return array.view(np.uint8) if array.dtype == np.bool_ else array


def _query_lists(matrices: Matrices) -> tuple[npt.NDArray[np.int8], Integers, Integers]:
    """The codes, where the labels of each query start, int64 [Q+1], and the labels of all one after the other."""
    rows, index = np.nonzero(to_numpy(matrices.query_labels))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrices.query_labels)))])
    return matrices.query_code.to(torch.int8).contiguous().numpy(), starts, index


class _Planes:
    """The database of `matrices` as bit planes; `full`, `empty`: rows without a zero, and of zeros."""

    def __init__(self, matrices: Matrices) -> None:
        from utils.hamming_compiled import BLOCK, WORDS, pack_planes  # needs numba, which is optional

        code_rows, label_rows = to_numpy(matrices.database_code), to_numpy(matrices.database_labels)
        blocks = -(-len(code_rows) // BLOCK)
        self.codes = np.zeros((blocks, -(-code_rows.shape[1] // 4) * 4 * WORDS), np.uint64)
        self.labels = np.zeros((blocks, label_rows.shape[1] * WORDS), np.uint64)
        self.full, self.empty, unused = np.zeros((3, blocks, WORDS), np.uint64)

        def pack(chosen: slice) -> None:
            rows = slice(chosen.start * BLOCK, chosen.stop * BLOCK)
            pack_planes(code_rows[rows], self.codes[chosen], self.full[chosen], self.empty[chosen])
            pack_planes(label_rows[rows], self.labels[chosen], unused[chosen], unused[chosen])

        _in_threads(pack, blocks)


def _count_compiled(matrices: Matrices, items: Integers, relevant: Integers, device: Device) -> None:
    from utils.hamming_compiled import count_blocks  # needs numba, which is optional

    planes = _Planes(matrices)
    codes, starts, labels = _query_lists(matrices)

    def count(rows: slice) -> None:
        count_blocks(
            planes.codes, planes.labels, planes.full, planes.empty, codes, starts, labels, rows.start, rows.stop,
            items, relevant,
        )  # fmt: skip

    _in_threads(count, len(codes))


def _count_numpy(matrices: Matrices, items: Integers, relevant: Integers, device: Device) -> None:
    bits, grades = matrices.query_code.shape[1], relevant.shape[1]
    is_full = (to_numpy(matrices.database_code) != 0).all(axis=1)
    full, rest = torch.from_numpy(np.flatnonzero(is_full)), torch.from_numpy(np.flatnonzero(~is_full))
    if len(rest):  # rows with zeros are rare enough for the slower engine
        _count_torch(matrices.of_items(rest), items, relevant, device)
        matrices = matrices.of_items(full)
    if not len(full):
        return
    query_code, database_code, query_labels, database_labels = matrices
    database, queries, used = pack_words(database_code), pack_words(query_code), pack_words(query_code != 0)
    offset = bits - (query_code != 0).sum(1).numpy()
    labels, asked = pack_words(database_labels), pack_words(query_labels)
    values = (bits + 1) * (grades + 1)
    largest = max(values, query_labels.shape[1] + 1)
    key_type = np.uint8 if largest <= 1 << 8 else np.int16 if largest <= 1 << 15 else np.int32
    counts = np.empty((len(query_code), values), np.int64)
    height = max(1, _PAIRS_PER_BLOCK["numpy"] // len(database_code))
    # One thread: two wait longer for Python's interpreter lock than they gain.
    for first in range(0, len(query_code), height):
        rows = slice(first, min(first + height, len(query_code)))
        # In place and with one type throughout: a conversion costs more than the counting.
        distance = np.zeros((), key_type)
        for word, ask, use in zip(database, queries, used, strict=True):
            differ = word ^ ask[rows, None]
            if offset[rows].any():
                differ &= use[rows, None]
            ones = np.bitwise_count(differ).astype(key_type, copy=False)
            distance = ones if distance.ndim == 0 else np.add(distance, ones, out=distance)
        shared = np.zeros((), key_type)
        for word, ask in zip(labels, asked, strict=True):
            both = word & ask[rows, None]
            ones = (both != 0).view(np.uint8) if grades == 1 else np.bitwise_count(both)
            ones = ones.astype(key_type, copy=False)
            shared = ones if shared.ndim == 0 else np.add(shared, ones, out=shared)
        if len(labels) > 1 or grades > 1:
            np.minimum(shared, grades, out=shared)
        distance *= key_type(grades + 1)
        distance += shared
        for row, key in zip(range(rows.start, rows.stop), torch.from_numpy(distance), strict=True):
            counts[row] = torch.bincount(key, minlength=values).numpy()

    by_share = counts.reshape(len(counts), bits + 1, grades + 1)
    for start in np.unique(offset):  # unused bits add half a unit each: distances start at half their number
        rows, differences = offset == start, bits + 1 - start
        places = slice(start, start + 2 * differences - 1, 2)
        items[rows, places] += by_share[rows, :differences].sum(2)
        relevant[rows, :, places] += _at_least(by_share[rows, :differences])


def pack_words(rows: torch.Tensor) -> list[Words]:
    """The signs of [n, K] numbers as words: one array [n] of the shortest unsigned type, or several of uint64."""
    packed = np.packbits(to_numpy(rows) > 0, axis=1)
    size = next((size for size in (1, 2, 4, 8) if packed.shape[1] <= size), 8)
    words = -(-packed.shape[1] // size)
    padded = np.zeros((len(packed), words * size), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return list(np.ascontiguousarray(padded.view(f"u{size}").T))


def _at_least(counts: Integers) -> Integers:
    """Counts [..., B, G+1] by the number of shared labels → counts [..., G, B] of more than g shared labels."""
    return np.moveaxis(np.cumsum(counts[..., :0:-1], axis=-1)[..., ::-1], -1, -2)


def _count_torch(matrices: Matrices, items: Integers, relevant: Integers, device: Device) -> None:
    device = torch.device("cpu" if device is None else device)
    bins, grades = items.shape[1], relevant.shape[1]
    values = bins * (grades + 1)
    query_code, database_code, query_labels, database_labels = matrices
    codes, labels = (rows.to(device, torch.float32).T for rows in (database_code, database_labels))
    height = max(1, _PAIRS_PER_BLOCK.get(device.type, _PAIRS_PER_BLOCK["torch"]) // len(database_code))
    for start in range(0, len(query_code), height):
        rows = slice(start, start + height)
        # Sums of few small integers: exact in float32, and in the shortened products of a GPU too.
        distance = query_code.shape[1] - query_code[rows].to(device, torch.float32) @ codes
        shared = (query_labels[rows].to(device, torch.float32) @ labels).clamp_(max=grades)
        key = distance.mul_(grades + 1).add_(shared).to(torch.int64)
        key += values * torch.arange(len(key), device=device)[:, None]
        counts = torch.bincount(key.flatten(), minlength=values * len(key)).view(len(key), bins, grades + 1)
        items[rows] += counts.sum(2).cpu().numpy()
        relevant[rows] += _at_least(counts.cpu().numpy())


ENGINES = {"compiled": _count_compiled, "numpy": _count_numpy, "torch": _count_torch}


def _rank_compiled(matrices: Matrices, limit: int) -> tuple[npt.NDArray[np.float64], Integers]:
    """`stable_precisions` by two counts."""
    num_queries, bits = matrices.query_code.shape
    items = np.zeros((num_queries, 2 * bits + 1), np.int64)
    relevant = np.zeros((num_queries, 1, 2 * bits + 1), np.int64)
    for rows in _chunks(matrices):
        _count_compiled(matrices.of_items(rows), items, relevant, None)
    next_rank = np.cumsum(items, axis=1) - items
    next_found = np.cumsum(relevant[:, 0], axis=1) - relevant[:, 0]
    precisions, found = np.zeros(num_queries), np.zeros(num_queries, np.int64)
    for rows in _chunks(matrices):
        _visit_relevant(matrices.of_items(rows), limit, next_rank, next_found, precisions, found)
    return precisions, found


def _visit_relevant(
    matrices: Matrices, limit: int, next_rank: Integers, next_found: Integers,
    precisions: npt.NDArray[np.float64], found: Integers,
) -> None:  # fmt: skip
    """`rank_blocks` for a part of the database."""
    from utils.hamming_compiled import rank_blocks  # needs numba, which is optional

    planes = _Planes(matrices)
    codes, starts, labels = _query_lists(matrices)

    def rank(rows: slice) -> None:
        rank_blocks(
            planes.codes, planes.labels, planes.full, planes.empty, codes, starts, labels, rows.start, rows.stop,
            limit, next_rank, next_found, precisions, found,
        )  # fmt: skip

    _in_threads(rank, len(codes))


def _rank_sorted(matrices: Matrices, limit: int, device: Device) -> tuple[npt.NDArray[np.float64], Integers]:
    """`stable_precisions` by a stable sort of the distances of each query."""
    device = torch.device("cpu" if device is None else device)
    (num_queries, bits), num_items = matrices.query_code.shape, len(matrices.database_code)
    precisions, found = np.zeros(num_queries), np.zeros(num_queries, np.int64)
    height = max(1, (1 << 22) // num_items)
    ranks = torch.arange(1, limit + 1, dtype=torch.float64, device=device)
    for start in range(0, num_queries, height):
        queries = matrices.of_queries(slice(start, start + height))
        distance = torch.empty(len(queries.query_code), num_items, dtype=torch.int16, device=device)
        hit = torch.empty(len(queries.query_code), num_items, dtype=torch.bool, device=device)
        for rows in _chunks(matrices):
            query_code, code, asked, labels = (part.to(device, torch.float32) for part in queries.of_items(rows))
            distance[:, rows] = bits - query_code @ code.T
            hit[:, rows] = asked @ labels.T > 0

        def rank(chosen: slice, distance: torch.Tensor = distance, hit: torch.Tensor = hit, start: int = start) -> None:
            for i in range(chosen.start, chosen.stop):
                hits = torch.nonzero(hit[i][_stable_order(distance[i])[:limit]]).flatten()
                counts = torch.arange(1, len(hits) + 1, dtype=torch.float64, device=device)
                precisions[start + i], found[start + i] = float((counts / ranks[hits]).sum()), len(hits)

        _in_threads(rank, len(distance), size=1)
    return precisions, found


def _stable_order(distance: torch.Tensor) -> torch.Tensor:
    if distance.device.type == "cpu":  # numpy sorts short integers by radix
        return torch.from_numpy(np.argsort(distance.numpy(), kind="stable"))
    return torch.argsort(distance, stable=True)
