"""How fast the evaluation is: mAP by a plain loop, by each engine of utils.evaluate, and by faiss.

python -m benchmarks.evaluate                   # five settings, seven rounds; prints the table of docs/evaluation.md
python -m benchmarks.evaluate --quick           # tiny sizes, a few seconds: checks that the benchmark runs
python -m benchmarks.evaluate --csv FILE        # also write all numbers; results/evaluate.csv was made so

Each round times every contestant once, one after the other, so that changes of the machine's load affect all of them.
The numbers are medians over the rounds. The plain loop and faiss rank only some of the queries; their time is scaled to
all queries. The plain loop runs on one thread, because a second one does not make it faster.
On a busy machine use `--clock cpu`: everything on one thread, in processor time.
Codes and labels are random; that is the hardest case, because nothing can be skipped.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from utils.command import Parser, bounded, run_command
from utils.evaluate import average_precision
from utils.files import require_place


class Setting(NamedTuple):
    """The size of a task."""

    name: str
    queries: int
    database: int
    bits: int
    classes: int
    topk: int | None


SETTINGS = (
    Setting("CIFAR-10, 12 bits", 1000, 59_000, 12, 10, None),
    Setting("CIFAR-10, 32 bits", 1000, 59_000, 32, 10, None),
    Setting("CIFAR-10, 64 bits", 1000, 59_000, 64, 10, None),
    Setting("NUS-WIDE, 32 bits", 2100, 193_734, 32, 21, None),
    Setting("NUS-WIDE, 32 bits, top 5,000", 2100, 193_734, 32, 21, 5000),
)
QUICK = (Setting("tiny", 60, 3_000, 12, 10, None), Setting("tiny, top 500", 60, 3_000, 32, 21, 500))

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_case(setting: Setting) -> Case:
    """Random ±1 codes and labels, float32: one label per item for 10 classes, else each label with probability 0.1.

    Above 16 bits the database codes are distinct.
    """
    rng = np.random.default_rng(999)
    shape = setting.queries, setting.database
    codes = [rng.integers(0, 2, (n, setting.bits), dtype=np.int8) * 2 - 1 for n in shape]
    if setting.bits > 16:
        distinct = np.unique(codes[1], axis=0)
        while len(distinct) < setting.database:
            more = rng.integers(0, 2, (setting.database, setting.bits), dtype=np.int8) * 2 - 1
            distinct = np.unique(np.concatenate([distinct, more]), axis=0)
        codes[1] = distinct[rng.permutation(len(distinct))[: setting.database]]
    if setting.classes == 10:
        labels = [np.eye(10, dtype=np.bool_)[rng.integers(0, 10, n)] for n in shape]
    else:
        labels = [rng.random((n, setting.classes)) < 0.1 for n in shape]
    query_code, database_code = (torch.from_numpy(array.astype(np.float32)) for array in codes)
    query_labels, database_labels = (torch.from_numpy(array.astype(np.float32)) for array in labels)
    return query_code, database_code, query_labels, database_labels


def plain_loop(case: Case, topk: int | None) -> torch.Tensor:
    """AP in stable order by its definition: the database is sorted for one query after the other."""
    query_code, database_code, query_labels, database_labels = case
    torch.set_num_threads(1)
    result = torch.zeros(len(query_code), dtype=torch.float64)
    for i in range(len(query_code)):
        distance = 0.5 * (query_code.shape[1] - query_code[i] @ database_code.T)
        relevant = (query_labels[i] @ database_labels.T > 0)[torch.argsort(distance, stable=True)][:topk]
        ranks = torch.nonzero(relevant).flatten() + 1
        if len(ranks):
            result[i] = (torch.arange(1, len(ranks) + 1, dtype=torch.float64) / ranks).mean()
    return result


def faiss_flat(case: Case, topk: int | None, *, threads: int) -> torch.Tensor:
    """AP from the ranking of faiss's exact binary index, with ties in the order of faiss."""
    import faiss  # optional

    query_code, database_code, query_labels, database_labels = case
    faiss.omp_set_num_threads(threads)

    def packed(codes: torch.Tensor) -> np.ndarray:
        words = np.packbits(codes.numpy() > 0, axis=1)
        return np.pad(words, ((0, 0), (0, -words.shape[1] % 4)))

    index = faiss.IndexBinaryFlat(8 * packed(database_code[:1]).shape[1])
    index.add(packed(database_code))
    result = torch.zeros(len(query_code), dtype=torch.float64)
    for start in range(0, len(query_code), 20):
        rows = slice(start, start + 20)
        ranked = torch.from_numpy(index.search(packed(query_code[rows]), topk or len(database_code))[1])
        for i, order in enumerate(ranked, start=start):
            ranks = torch.nonzero((database_labels @ query_labels[i] > 0)[order]).flatten() + 1
            if len(ranks):
                result[i] = (torch.arange(1, len(ranks) + 1, dtype=torch.float64) / ranks).mean()
    return result


def ours(case: Case, topk: int | None, *, engine: str, threads: int, ties: str = "expected") -> torch.Tensor:
    """`average_precision`, including checks and packing, with a given engine and number of threads."""
    torch.set_num_threads(threads)
    with mock.patch("utils.hamming.default_engine", lambda *_: engine):
        return average_precision(*case, topk=topk, ties=ties)


def contestants(threads: int) -> dict[str, Callable[[Case, int | None], torch.Tensor]]:
    """What is timed, by name; numba and faiss only if they are installed."""
    result: dict[str, Callable[[Case, int | None], torch.Tensor]] = {"plain loop": plain_loop}
    if importlib.util.find_spec("numba"):
        result["ours, 1 thread"] = functools.partial(ours, engine="compiled", threads=1)
        if threads > 1:
            result[f"ours, {threads} threads"] = functools.partial(ours, engine="compiled", threads=threads)
        result["ours, stable"] = functools.partial(ours, engine="compiled", threads=threads, ties="stable")
    if hasattr(np, "bitwise_count"):
        result["without numba"] = functools.partial(ours, engine="numpy", threads=threads)
    result["torch path"] = functools.partial(ours, engine="torch", threads=threads)
    if importlib.util.find_spec("faiss"):
        result["faiss flat"] = functools.partial(faiss_flat, threads=threads)
    return result


SUBSET = ("plain loop", "faiss flat")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(setting: Setting, rounds: int, subset: int, threads: int, clock: str) -> list[dict[str, Any]]:
    """Rows of the CSV: median seconds of each contestant, and how many times faster it is than the plain loop.

    Also checks that the contestants compute the same AP.
    """
    case = make_case(setting)
    few = (case[0][:subset], case[1], case[2][:subset], case[3])
    seconds: dict[str, list[float]] = {}
    computed: dict[str, torch.Tensor] = {}
    for round_number in range(rounds + 1):  # the first round warms up
        for name, contestant in contestants(threads).items():
            start = CLOCKS[clock]()
            computed[name] = contestant(few if name in SUBSET else case, setting.topk)
            elapsed = CLOCKS[clock]() - start
            if round_number:
                scale = setting.queries / len(few[0]) if name in SUBSET else 1.0
                seconds.setdefault(name, []).append(elapsed * scale)
    expected = [values for name, values in computed.items() if name not in (*SUBSET, "ours, stable")]
    assert all(torch.equal(values, expected[0]) for values in expected), "the engines disagree"
    if "ours, stable" in computed:
        torch.testing.assert_close(computed["ours, stable"][: len(few[0])], computed["plain loop"], rtol=0, atol=1e-12)
    distinct = len(np.unique(case[1].numpy().astype(np.int8), axis=0)) / setting.database
    plain = statistics.median(seconds["plain loop"])
    return [
        {
            "setting": setting.name,
            "queries": setting.queries,
            "database": setting.database,
            "bits": setting.bits,
            "topk": setting.topk or "all",
            "distinct_codes": round(distinct, 3),
            "contestant": name,
            "queries_timed": len(few[0]) if name in SUBSET else setting.queries,
            "seconds": f"{statistics.median(times):.5f}",
            "fastest": f"{min(times):.5f}",
            "slowest": f"{max(times):.5f}",
            "ratio": f"{plain / statistics.median(times):.1f}",
            "rounds": rounds,
            "clock": clock,
            "threads": threads,
        }
        for name, times in seconds.items()
    ]


def peak_memory(setting: Setting, engine: str, ties: str) -> float:
    """Peak memory of one evaluation above its inputs, in MiB: the high-water mark of the resident set (Linux)."""
    case = make_case(setting)
    query_code, database_code, query_labels, database_labels = (tensor[:100] for tensor in case)
    # The first call loads and compiles.
    ours((query_code, database_code, query_labels, database_labels), None, engine=engine, threads=2, ties=ties)
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark

    def kib(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))

    before = kib("VmRSS")
    ours(case, setting.topk, engine=engine, threads=2, ties=ties)
    return (kib("VmHWM") - before) / 1024


def print_row(rows: Sequence[dict[str, Any]], *, head: bool) -> None:
    """Print one setting as a line of Markdown: seconds, and how many times faster than the plain loop."""
    if head:
        print("| setting | " + " | ".join(row["contestant"] for row in rows) + " |")
        print("| --- |" + " ---: |" * len(rows))
    cells = [f"{float(row['seconds']):.3f} s ({float(row['ratio']):.3g}×)" for row in rows]
    print(f"| {rows[0]['setting']} | " + " | ".join(cells) + " |", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run with the given command line; returns the exit status."""
    return run_command("python -m benchmarks.evaluate", lambda: _benchmark(arguments))


def _benchmark(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m benchmarks.evaluate", description=(__doc__ or "").splitlines()[0])
    count = bounded(int, 1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds")
    parser.add_argument("--rounds", type=count, default=7, help="timed rounds [7]")
    parser.add_argument("--subset", type=count, default=20, help="queries that the plain loop and faiss rank [20]")
    parser.add_argument("--threads", type=count, default=2, help="threads, except of 'ours, 1 thread' [2]")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time (Linux)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers to this file")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: processor time, all on one thread")
    options = parser.parse_args(arguments)
    if options.csv:
        require_place(options.csv, "--csv")
    settings, rounds = (QUICK, 2) if options.quick else (SETTINGS, options.rounds)
    threads = 1 if options.clock == "cpu" else options.threads
    print(f"torch {torch.__version__}, numpy {np.__version__}, {platform.machine()}, {threads} threads")
    if options.memory:
        runs = [("compiled", "expected"), ("compiled", "stable"), ("numpy", "expected"), ("numpy", "stable")]
        for setting in settings:
            for engine, ties in [*runs, ("torch", "expected")]:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    peak = pool.apply(peak_memory, (setting, engine, ties))
                print(f"{setting.name}: {engine}, {ties}: {peak:.0f} MiB above the inputs", flush=True)
        return
    print(
        f"{options.clock} clock, medians of {rounds} rounds; plain loop, faiss: {options.subset} queries, scaled to all"
    )
    rows: list[dict[str, Any]] = []
    for setting in settings:
        measured = measure(setting, rounds, options.subset, threads, options.clock)
        print_row(measured, head=not rows)
        rows += measured
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
