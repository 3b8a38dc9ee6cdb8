"""Search in stores of many synthetic codes: processor time of each work, and the recall of the index (docs/search.md).

    python -m benchmarks.search [--codes 100000,1000000,10000000] [--queries 100]

Two codes of one centre are 14 bits apart on average, codes of two centres 32. Processor times of all threads together
depend less on other processes than the clock.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.timing import RESULTS, memory, print_table, write_results
from search.exact import Neighbours
from search.model import Model
from search.store import Store, default_probes
from tests.search.tiny_model import tiny_model
from utils.command import Parser, bounded, run_command
from utils.files import require_place
from utils.seeding import derive_seed

BITS, K, RADIUS, LABELS, REMOVED = 64, 10, 6, 100, 1000
CODES_A_CENTRE = 1000
ROWS_IN_VERSION = 1_000_000

Row = dict[str, object]


def draw(count: int, centres: np.ndarray, *key: int | str) -> np.ndarray:
    """Packed codes uint8 [count, 8] around `centres` (uint64)."""
    random = np.random.default_rng(derive_seed("search", *key))
    codes = centres[random.integers(0, len(centres), count)]
    flips = random.integers(0, 1 << 64, count, dtype=np.uint64)
    for _ in range(2):  # three words: a bit is set in all of them with probability 1/8
        flips &= random.integers(0, 1 << 64, count, dtype=np.uint64)
    return (codes ^ flips).view(np.uint8).reshape(count, BITS // 8)


def fill(store: Store, codes: np.ndarray) -> None:
    """Write codes with names of 25 characters and 100 labels, in versions of a million."""
    import lancedb  # search.store has set its environment

    table = lancedb.connect(store.uri).open_table("images")
    for start in range(0, len(codes), ROWS_IN_VERSION):
        part = codes[start : start + ROWS_IN_VERSION]
        rows = pa.array(np.arange(start, start + len(part)))
        digits = pc.utf8_lpad(rows.cast(pa.string()), 8, "0")
        labels = pc.binary_join_element_wise("class", pc.utf8_slice_codeunits(digits, 6, 8), " ")
        columns = {
            "code": pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), BITS // 8),
            "label": labels,
            "name": pc.binary_join_element_wise(labels, "/photo ", digits, ".jpg", "").cast(pa.large_string()),
            "size": rows,
            "modified": rows,
        }
        table.add(pa.table(columns).select(table.schema.names))


def recall(found: list[Neighbours], exact: list[Neighbours]) -> float:
    """The mean share of `K` results that are no farther than the last exact one: ties are equally good."""
    shares = [(near.distances <= best.distances[-1]).sum() / K for near, best in zip(found, exact, strict=True)]
    return float(np.mean(shares))


def measure(count: int, num_queries: int, folder: str) -> list[Row]:
    """One row for each work and setting."""
    random = np.random.default_rng(derive_seed("search", "centres", count))
    centres = random.integers(0, 1 << 64, max(1, count // CODES_A_CENTRE), dtype=np.uint64)
    codes = draw(count, centres, "codes", count)
    queries = draw(num_queries, centres, "queries", count)
    store = Store.create(f"{folder}/{count}", Model.from_bytes(tiny_model(BITS), "tiny"))
    rows: list[Row] = []

    def note(work: str, setting: str, milliseconds: float, found_share: float | None = None) -> None:
        row = {
            "codes": count,
            "work": work,
            "setting": setting,
            "recall@10": "" if found_share is None else found_share,
        }
        rows.append(row | {"cpu (ms)": float(f"{milliseconds:.3g}")})
        print(f"{count:,} {work} {setting}: {milliseconds:.3g} ms", file=sys.stderr)

    def once(work: str, setting: str, act: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = act()
        note(work, setting, 1000 * (time.process_time() - start))
        return result

    def each(work: str, setting: str, exact: list[Neighbours] | None = None, **how: Any) -> list[Neighbours]:
        times, found = [], []
        for query in queries:
            start = time.process_time()
            found += store.search(query[None], **how)
            times.append(1000 * (time.process_time() - start))
        note(work, setting, statistics.median(times), None if exact is None else round(recall(found, exact), 4))
        return found

    once("insert", "without encoding", lambda: fill(store, codes))
    once("compact", "optimize", store.optimize)
    resident = memory("VmRSS")
    once("load", "all into memory", store.collection)
    store.search(queries[:1])
    megabytes = (memory("VmRSS") - resident) / 1e6
    disk = sum(path.stat().st_size for path in Path(store.uri).rglob("*") if path.is_file()) / 1e6
    print(f"{count:,}: {disk:.0f} MB on the disk, {megabytes:.0f} MB in memory", file=sys.stderr)

    exact = each("query, exact", f"k {K}", k=K)
    start = time.process_time()
    store.search(queries, k=K)
    note("query, exact", f"k {K}, {num_queries} together", 1000 * (time.process_time() - start) / num_queries)
    each("query, exact", f"k {K}, one label of {LABELS}", k=K, label="class 07")
    within = each("query, exact", f"radius {RADIUS}", radius=RADIUS)
    once("build the index", "with its recall", lambda: store.optimize(index=True))
    lists = store.lists() or 1
    default = default_probes(lists)
    for probes in sorted({max(1, default // 8), max(1, default // 2), default, min(lists, 4 * default)}):
        each("query, index", f"k {K}, {probes} of {lists} lists", exact, k=K, probes=probes)
    each("query, index", f"k {K}, {default} of {lists} lists, one label of {LABELS}", k=K, label="class 07")
    found = each("query, index", f"radius {RADIUS}, {default} of {lists} lists", radius=RADIUS)
    share = sum(len(one.rows) for one in found) / max(1, sum(len(one.rows) for one in within))
    print(f"{count:,}: {share:.4f} of the images within {RADIUS} bits found", file=sys.stderr)
    names = store.collection().names.slice(0, REMOVED).to_pylist()
    once("remove", f"{REMOVED:,} images", lambda: store.remove(names))
    return rows


def main() -> int:
    """Run with the command line; returns the exit status."""

    def work() -> None:
        parser = Parser(prog="python -m benchmarks.search", description="Time the search in synthetic codes.")
        parser.add_argument("--codes", default="100000,1000000,10000000", metavar="N,...", help="numbers of codes")
        parser.add_argument("--queries", type=bounded(int, 1), default=100, metavar="N", help="queries [100]")
        parser.add_argument("-o", "--output", type=Path, default=RESULTS / "search.csv", help="[results/search.csv]")
        options = parser.parse_args()
        require_place(options.output, "-o")
        with tempfile.TemporaryDirectory() as folder:
            rows = [
                row
                for count in options.codes.split(",")
                for row in measure(bounded(int, 1)(count), options.queries, folder)  # type: ignore[arg-type]
            ]
        print_table(
            list(rows[0]),
            [[f"{value:,}" if name == "codes" else str(value) for name, value in row.items()] for row in rows],
        )
        print(f"peak memory of the process: {memory('VmHWM') / 1e9:.1f} GB", file=sys.stderr)
        write_results(options.output, rows)

    return run_command("python -m benchmarks.search", work)


if __name__ == "__main__":
    sys.exit(main())
