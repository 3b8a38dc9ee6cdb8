"""Counting a database by Hamming distance to each query: histograms, and ranks in stable order.

Distance is d = (K − q·b)/2 for codes of −1 and +1, and, by the same formula, for codes with zeros: an item of zeros
lies K/2 from everything. So histograms have 2K+1 bins, half a unit of distance each.

Three ways to count give the same integers:

- ``compiled``: bit slices (`utils.hamming_compiled`), where numba is installed;
- ``numpy``: packed words, exclusive or, ``bitwise_count`` (numpy ≥ 2), then ``torch.bincount``;
- ``torch``: a matrix product, on any device.

None holds the Q × D matrix of distances.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

ENGINES = ("compiled", "numpy", "torch")

_MOST_ROWS = 1 << 16  # database rows packed at once, ...
_NUMBERS_PER_CHUNK = 1 << 23  # ... fewer where codes and labels are wide
_ROWS_TORCH_COUNTS_ALONE = 1 << 15  # torch.bincount of more starts threads of its own, which fight with ours
_PAIRS_WORTH_COMPILING = 1 << 23  # numpy counts these in about the time that numba takes to load
_HISTOGRAM_BYTES = 1 << 22  # histograms of one block of queries
_PAIRS_PER_BLOCK = {"numpy": 1 << 17, "torch": 1 << 20, "cuda": 1 << 25}  # query-item pairs held at once

Words = npt.NDArray[np.unsignedinteger]
Integers = npt.NDArray[np.int64]


def default_engine(num_pairs: int, device: torch.device | str | None = None) -> str:
    """The fastest way to count `num_pairs` pairs: torch on a GPU; else compiled, where numba is there and worth it."""
    if device is not None and torch.device(device).type != "cpu":
        return "torch"
    if num_pairs >= _PAIRS_WORTH_COMPILING and importlib.util.find_spec("numba") is not None:
        return "compiled"
    return "numpy" if hasattr(np, "bitwise_count") else "torch"


def query_blocks(num_queries: int, bits: int, grades: int = 1) -> Iterator[slice]:
    """Slices of the queries whose histograms fit a fixed budget of memory."""
    size = max(1, _HISTOGRAM_BYTES // (8 * (2 * bits + 1) * (1 + grades)))
    return (slice(start, min(start + size, num_queries)) for start in range(0, num_queries, size))


def count_by_distance(
    query_code: torch.Tensor,
    database_code: torch.Tensor,
    query_labels: torch.Tensor,
    database_labels: torch.Tensor,
    *,
    grades: int = 1,
    device: torch.device | str | None = None,
    engine: str | None = None,
    threads: int | None = None,
) -> tuple[Integers, Integers]:
    """Histograms of the database over distance, a row a query.

    Args:
        query_code: [Q, K], database_code: [D, K], entries −1, 0 or +1 (unchecked).
        query_labels: [Q, C], database_labels: [D, C], multi-hot (unchecked).
        grades: G; 1 counts relevant items, more count by the number of shared labels.
        device: where to count.
        engine: one of `ENGINES`; None takes `default_engine`.
        threads: None takes torch's number of threads; for numpy one, as two wait longer for the
            interpreter than they gain.

    Returns:
        items: int64 [Q, 2K+1]; bin j counts the items at distance j/2.
        relevant: int64 [Q, G, 2K+1]; [:, g] counts those that share more than g labels with the query.
    """
    engine = engine or default_engine(len(query_code) * len(database_code), device)
    shape = len(query_code), query_code.shape[1]
    items = np.zeros((shape[0], 2 * shape[1] + 1), np.int64)
    relevant = np.zeros((shape[0], grades, 2 * shape[1] + 1), np.int64)
    count = {"compiled": _count_compiled, "numpy": _count_numpy, "torch": _count_torch}[engine]
    with _Workers(threads or (1 if engine == "numpy" else None)) as workers:
        for rows in _chunks(
            database_code, database_labels, _MOST_ROWS if engine != "numpy" else _ROWS_TORCH_COUNTS_ALONE
        ):
            count(
                query_code, database_code[rows], query_labels, database_labels[rows], items, relevant, workers, device
            )
    return items, relevant


def stable_average_precision(
    query_code: torch.Tensor,
    database_code: torch.Tensor,
    query_labels: torch.Tensor,
    database_labels: torch.Tensor,
    limit: int,
    *,
    device: torch.device | str | None = None,
    engine: str | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.float64]:
    """AP of each query over its first `limit` items, ties in database order.

    Args: as `count_by_distance`. The compiled engine counts twice, once for each distance's first rank and once to walk
        the relevant items; the others sort. Rows that are zero in part are always sorted.

    Returns:
        float64 [Q]; 0 for a query without a relevant item among them.
    """
    engine = engine or default_engine(len(query_code) * len(database_code), device)
    arguments = query_code, database_code, query_labels, database_labels
    with _Workers(threads) as workers:
        result = _rank_compiled(*arguments, limit, workers) if engine == "compiled" else None
        if result is None:
            result = _rank_sorted(*arguments, limit, device, workers)
    return result


def _chunks(codes: torch.Tensor, labels: torch.Tensor, most: int) -> list[slice]:
    """Slices of the database that bound what a chunk takes; multiples of 4096 rows, the bit slices' block."""
    rows = _NUMBERS_PER_CHUNK // (codes.shape[1] + labels.shape[1]) // 4096 * 4096
    rows = min(max(rows, 4096), most)
    return [slice(start, start + rows) for start in range(0, len(codes), rows)]


class _Workers:
    """A pool that maps a function over slices of a range; it never outlives the call that made it."""

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def map(self, work: Callable[[slice], None], length: int, size: int) -> None:
        slices = [slice(start, min(start + size, length)) for start in range(0, length, size)]
        for _ in map(work, slices) if self._pool is None or len(slices) == 1 else self._pool.map(work, slices):
            pass

    def share(self, work: Callable[[slice], None], length: int) -> None:
        """Map over a few slices a thread: enough to even out, few enough to cost nothing."""
        self.map(work, length, max(1, -(-length // (4 * self.threads if self.threads > 1 else 1))))


def to_numpy(rows: torch.Tensor) -> np.ndarray:
    """A contiguous array of a type that compiled code and numpy both know; no copy where none is needed."""
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.to(torch.float32)
    array = rows.contiguous().cpu().numpy()
    return array.view(np.uint8) if array.dtype == np.bool_ else array


def _label_lists(labels: torch.Tensor) -> tuple[Integers, Integers]:
    """Each row's labels, one list after the other, and where each row's list starts."""
    rows, index = np.nonzero(to_numpy(labels))
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(labels)))]), index


class _Planes:
    """A chunk of the database as bit planes, packed by all workers."""

    def __init__(self, codes: torch.Tensor, labels: torch.Tensor, workers: _Workers) -> None:
        from utils.hamming_compiled import BLOCK, WORDS, pack_planes

        code_rows, label_rows = to_numpy(codes), to_numpy(labels)
        blocks = -(-len(code_rows) // BLOCK)
        self.codes = np.zeros((blocks, -(-codes.shape[1] // 4) * 4 * WORDS), np.uint64)
        self.labels = np.zeros((blocks, labels.shape[1] * WORDS), np.uint64)
        self.full, self.empty, unused = np.zeros((3, blocks, WORDS), np.uint64)

        def pack(chosen: slice) -> None:
            rows = slice(chosen.start * BLOCK, chosen.stop * BLOCK)
            pack_planes(code_rows[rows], self.codes[chosen], self.full[chosen], self.empty[chosen])
            pack_planes(label_rows[rows], self.labels[chosen], unused[chosen], unused[chosen])

        workers.share(pack, blocks)
        classed = (self.full | self.empty).view(np.uint8)
        self.partial = np.flatnonzero(np.unpackbits(classed, bitorder="little")[: len(code_rows)] == 0)


def _count_compiled(query_code, database_code, query_labels, database_labels, items, relevant, workers, device) -> None:
    from utils.hamming_compiled import count_blocks

    planes = _Planes(database_code, database_labels, workers)
    codes = query_code.to(torch.int8).contiguous().numpy()
    lists = _label_lists(query_labels)

    def count(rows: slice) -> None:
        first, last = rows.start, rows.stop
        count_blocks(
            planes.codes, planes.labels, planes.full, planes.empty, codes, *lists, first, last, items, relevant
        )  # fmt: skip

    workers.share(count, len(codes))
    if len(planes.partial):
        rows = torch.from_numpy(planes.partial)
        _count_torch(
            query_code, database_code[rows], query_labels, database_labels[rows], items, relevant, workers, device
        )  # fmt: skip


def _count_numpy(query_code, database_code, query_labels, database_labels, items, relevant, workers, device) -> None:
    bits, grades = query_code.shape[1], relevant.shape[1]
    is_full = (to_numpy(database_code) != 0).all(axis=1)
    full, rest = torch.from_numpy(np.flatnonzero(is_full)), torch.from_numpy(np.flatnonzero(~is_full))
    if len(rest):  # rows never encoded, or in part: rare enough for the plain way
        _count_torch(
            query_code, database_code[rest], query_labels, database_labels[rest], items, relevant, workers, device
        )  # fmt: skip
    if not len(full):
        return
    if len(rest):
        database_code, database_labels = database_code[full], database_labels[full]
    database, queries, used = pack_words(database_code), pack_words(query_code), pack_words(query_code != 0)
    offset = bits - (query_code != 0).sum(1).numpy()
    labels, asked = pack_words(database_labels), pack_words(query_labels)
    values = (bits + 1) * (grades + 1)
    largest = max(values, query_labels.shape[1] + 1)
    key_type = np.uint8 if largest <= 1 << 8 else np.int16 if largest <= 1 << 15 else np.int32
    counts = np.empty((len(query_code), values), np.int64)

    def count(rows: slice) -> None:
        # in place and without mixed types throughout: a conversion costs more than the counting
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

    workers.map(count, len(query_code), max(1, _PAIRS_PER_BLOCK["numpy"] // len(database_code)))
    by_share = counts.reshape(len(counts), bits + 1, grades + 1)
    for start in np.unique(offset):  # a query's unused bits never differ: its distances start at half their number
        rows, differences = offset == start, bits + 1 - start
        places = slice(start, start + 2 * differences - 1, 2)
        items[rows, places] += by_share[rows, :differences].sum(2)
        relevant[rows, :, places] += _at_least(by_share[rows, :differences])


def pack_words(rows: torch.Tensor) -> list[Words]:
    """The signs of [n, K] numbers packed into words: one array [n] of the shortest type, or several of uint64."""
    packed = np.packbits(to_numpy(rows) > 0, axis=1)
    size = next((size for size in (1, 2, 4, 8) if packed.shape[1] <= size), 8)
    words = -(-packed.shape[1] // size)
    padded = np.zeros((len(packed), words * size), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return list(np.ascontiguousarray(padded.view(f"u{size}").T))


def _at_least(counts: Integers) -> Integers:
    """From counts [..., B, G+1] by number of shared labels to [..., G, B], counts of more than g shared labels."""
    return np.moveaxis(np.cumsum(counts[..., :0:-1], axis=-1)[..., ::-1], -1, -2)


def _count_torch(query_code, database_code, query_labels, database_labels, items, relevant, workers, device) -> None:
    device = torch.device("cpu" if device is None else device)
    bins, grades = items.shape[1], relevant.shape[1]
    values = bins * (grades + 1)
    codes, labels = _as_columns(database_code, device), _as_columns(database_labels, device)
    height = max(1, _PAIRS_PER_BLOCK.get(device.type, _PAIRS_PER_BLOCK["torch"]) // len(database_code))

    def count(rows: slice) -> None:
        # sums of few small integers: exact in float32, and in a GPU's shortened products too
        distance = query_code.shape[1] - query_code[rows].to(device, torch.float32) @ codes
        shared = (query_labels[rows].to(device, torch.float32) @ labels).clamp_(max=grades)
        key = distance.mul_(grades + 1).add_(shared).to(torch.int64)
        key += values * torch.arange(len(key), device=device)[:, None]
        counts = torch.bincount(key.flatten(), minlength=values * len(key)).view(len(key), bins, grades + 1)
        items[rows] += counts.sum(2).cpu().numpy()
        relevant[rows] += _at_least(counts.cpu().numpy())

    for start in range(0, len(query_code), height):
        count(slice(start, min(start + height, len(query_code))))


def _as_columns(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    return rows.to(device, torch.float32).T


def _rank_compiled(query_code, database_code, query_labels, database_labels, limit, workers):
    """AP in stable order by two counts; None where a row is zero in part, which the bit slices do not order."""
    from utils.hamming_compiled import rank_blocks

    items = np.zeros((len(query_code), 2 * query_code.shape[1] + 1), np.int64)
    relevant = np.zeros((len(query_code), 1, items.shape[1]), np.int64)
    for rows in _chunks(database_code, database_labels, _MOST_ROWS):
        _count_compiled(
            query_code, database_code[rows], query_labels, database_labels[rows], items, relevant, workers, None
        )
    next_rank = np.cumsum(items, axis=1) - items
    next_found = np.cumsum(relevant[:, 0], axis=1) - relevant[:, 0]
    precisions, found = np.zeros(len(query_code)), np.zeros(len(query_code), np.int64)
    codes, lists = query_code.to(torch.int8).contiguous().numpy(), _label_lists(query_labels)
    for chunk in _chunks(database_code, database_labels, _MOST_ROWS):
        planes = _Planes(database_code[chunk], database_labels[chunk], workers)
        if len(planes.partial):
            return None

        def rank(rows: slice, planes: _Planes = planes) -> None:
            rank_blocks(
                planes.codes, planes.labels, planes.full, planes.empty, codes, *lists, rows.start, rows.stop,
                limit, next_rank, next_found, precisions, found,
            )  # fmt: skip

        workers.share(rank, len(codes))
    return precisions / np.maximum(found, 1)


def _rank_sorted(query_code, database_code, query_labels, database_labels, limit, device, workers):
    """AP in stable order by a stable sort of each query's distances."""
    device = torch.device("cpu" if device is None else device)
    bits, num_items = query_code.shape[1], len(database_code)
    result = np.zeros(len(query_code))
    height = max(1, (1 << 22) // num_items)
    ranks = torch.arange(1, limit + 1, dtype=torch.float64, device=device)
    for start in range(0, len(query_code), height):
        rows = slice(start, start + height)
        codes = query_code[rows].to(device, torch.float32)
        asked = query_labels[rows].to(device, torch.float32)
        distance = torch.empty(len(codes), num_items, dtype=torch.int16, device=device)
        hit = torch.empty(len(codes), num_items, dtype=torch.bool, device=device)
        for chunk in _chunks(database_code, database_labels, _MOST_ROWS):
            distance[:, chunk] = bits - codes @ _as_columns(database_code[chunk], device)
            hit[:, chunk] = asked @ _as_columns(database_labels[chunk], device) > 0

        def rank(chosen: slice, distance=distance, hit=hit, start=start) -> None:
            for i in range(chosen.start, chosen.stop):
                hits = hit[i][_stable_order(distance[i])[:limit]]
                found = torch.nonzero(hits).flatten()
                if len(found):
                    counts = torch.arange(1, len(found) + 1, dtype=torch.float64, device=device)
                    result[start + i] = float((counts / ranks[found]).mean())

        workers.map(rank, len(codes), 1)
    return result


def _stable_order(distance: torch.Tensor) -> torch.Tensor:
    if distance.device.type == "cpu":  # numpy sorts short integers by radix
        return torch.from_numpy(np.argsort(distance.numpy(), kind="stable"))
    return torch.argsort(distance, stable=True)
