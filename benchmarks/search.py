"""Search in many synthetic codes: build time, bytes, time per query and recall of every backend (docs/search.md).

    python -m benchmarks.search [--codes 100000,1000000,10000000] [--queries 100]

Two codes of one centre are 14 bits apart on average, codes of two centres 32. Times are processor times, which depend
less on other processes than the clock.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.timing import RESULTS, memory, print_table, write_results
from search.backends import FaissBackend, NumpyBackend, build_structure
from search.exact import Rows
from search.index import Index
from utils.command import Parser, bounded, run_command
from utils.files import require_place
from utils.seeding import derive_seed

BITS, K, REPEATS = 64, 10, 5
CODES_A_CENTRE = 1000
HASHES = {(4, 16): (0, 1, 2), (3, 20): (0, 1)}  # (tables, bits of a key): flips
MOST_FOR_TWO_FLIPS = 1_000_000  # codes; with more, two flips compare more codes than there are
PROBES = (1, 8, 32, 64, 256)

Search = Callable[..., list[tuple[Rows, Rows]]]


def release_memory() -> None:
    """Give freed memory back to the system, so that only used memory is resident (glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def draw(count: int, centres: np.ndarray, *key: int | str) -> np.ndarray:
    """Packed codes uint8 [count, 8] around `centres` (uint64)."""
    random = np.random.default_rng(derive_seed("search", *key))
    codes = centres[random.integers(0, len(centres), count)]
    flips = random.integers(0, 1 << 64, count, dtype=np.uint64)
    for _ in range(2):  # three words: a bit is set in all of them with probability 1/8
        flips &= random.integers(0, 1 << 64, count, dtype=np.uint64)
    return (codes ^ flips).view(np.uint8).reshape(count, BITS // 8)


def recall(found: list[tuple[Rows, Rows]], exact: list[tuple[Rows, Rows]]) -> float:
    """The mean share of `K` results that are no farther than the last exact one: ties are equally good."""
    shares = [(near <= best[-1]).sum() / K for (_, near), (_, best) in zip(found, exact, strict=True)]
    return float(np.mean(shares))


def measure(count: int, num_queries: int) -> list[dict[str, object]]:
    """One row for each backend and setting."""
    random = np.random.default_rng(derive_seed("search", "centres", count))
    centres = random.integers(0, 1 << 64, max(1, count // CODES_A_CENTRE), dtype=np.uint64)
    index = Index(draw(count, centres, "codes", count), (), None, BITS, {}, "")
    queries = draw(num_queries, centres, "queries", count)
    backends: list[tuple[dict[str, object], Search]] = []

    def add(name: str, setting: str, built: tuple[float, float, float], search: Search) -> None:
        seconds, disk, resident = built
        row = {"codes": count, "backend": name, "setting": setting}
        row |= {"build (s)": round(seconds, 1), "disk (MB)": round(disk), "memory (MB)": round(resident)}
        backends.append((row, search))

    def structure(name: str, tables: tuple[int, int] | None = None) -> tuple[Any, tuple[float, float, float]]:
        release_memory()
        before, start = memory("VmRSS"), time.process_time()
        result = build_structure(name, index.codes, tables=tables)
        seconds = time.process_time() - start
        release_memory()
        resident = (memory("VmRSS") - before) / 1e6
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "structure"
            faiss.write_index_binary(result, str(path))
            disk = path.stat().st_size / 1e6
        print(f"{count:,} {name} {tables or ''}: built in {seconds:.1f} s", file=sys.stderr)
        return result, (seconds, disk, resident)

    own = NumpyBackend(index)
    start = time.process_time()
    own.search(queries[:1], K)
    add("numpy", "", (time.process_time() - start, index.codes.nbytes / 1e6, index.codes.nbytes / 1e6), own.search)
    flat, built = structure("flat")
    add("flat", "", built, FaissBackend(index, "flat", flat).search)
    ivf, built = structure("ivf")
    for nprobe in PROBES:
        if nprobe < ivf.nlist:
            search = FaissBackend(index, "ivf", ivf, nprobe=nprobe).search
            add("ivf", f"nlist {ivf.nlist}, nprobe {nprobe}", built, search)
    for tables, flips in HASHES.items():
        multihash, built = structure("multihash", tables)
        for nflip in flips:
            if nflip > 1 and count > MOST_FOR_TWO_FLIPS:
                continue
            search = FaissBackend(index, "multihash", multihash, nflip=nflip).search
            add("multihash", f"{tables[0]} × {tables[1]} bits, nflip {nflip}", built, search)

    exact = own.search(queries, K)
    batch: list[list[float]] = [[] for _ in backends]
    for _ in range(REPEATS):
        for place, (row, search) in enumerate(backends):
            start = time.process_time()
            found = search(queries, K)
            batch[place].append(1000 * (time.process_time() - start) / num_queries)
            row["recall@10"] = round(recall(found, exact), 4)
            if row["backend"] == "flat":  # the same rows, not only equally good ones
                for own_result, result in zip(exact, found, strict=True):
                    assert np.array_equal(own_result, result)
    for place, (row, search) in enumerate(backends):
        times = []
        for query in queries:
            start = time.process_time()
            search(query[None], K)
            times.append(time.process_time() - start)
        row["one query (ms)"] = round(1000 * statistics.median(times), 3)
        row[f"of {num_queries} together (ms)"] = round(statistics.median(batch[place]), 3)
    return [row for row, _ in backends]


def work() -> None:
    """Read the command line, measure, and write and print the table."""
    whole = bounded(int, 1)
    parser = Parser(prog="python -m benchmarks.search", description="Search in many synthetic codes.")
    parser.add_argument(
        "--codes",
        type=lambda text: [int(whole(count)) for count in text.split(",")],
        default="100000,1000000,10000000",
        metavar="N,N,…",
        help="numbers of codes",
    )
    parser.add_argument("--queries", type=whole, default=100, metavar="N", help="number of queries [100]")
    parser.add_argument(
        "-o", "--output", type=Path, default=RESULTS / "search.csv", metavar="FILE", help="CSV [results/search.csv]"
    )
    arguments = parser.parse_args()
    require_place(arguments.output, "-o")
    faiss.omp_set_num_threads(1)
    rows = []
    for count in arguments.codes:
        rows += measure(count, arguments.queries)
        gc.collect()
    write_results(arguments.output, rows)
    cells = [[f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in row.values()] for row in rows]
    print_table(list(rows[0]), cells)
    print(f"\nfaiss {faiss.__version__}; peak memory {memory('VmHWM') / 1e6:,.0f} MB")


if __name__ == "__main__":
    sys.exit(run_command("python -m benchmarks.search", work))
