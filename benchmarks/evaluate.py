"""How fast the evaluation is: mAP by a plain loop, by each engine of utils.evaluate, and by faiss (docs/evaluation.md).

    python -m benchmarks.evaluate             # five settings, seven rounds; writes results/evaluate.csv
    python -m benchmarks.evaluate --quick     # tiny sizes, a few seconds: checks that the benchmark runs
    python -m benchmarks.evaluate --memory    # peak memory instead of time

The plain loop and faiss rank only some of the queries; their time is scaled to all. A second thread does not make the
plain loop faster. Codes and labels are random: the hardest case, because nothing can be skipped.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import RESULTS, in_turn, memory, print_table, seconds, write_results
from training.run_folder import device_name
from utils.command import Parser, bounded, run_command
from utils.evaluate import average_precision

PROGRAM = "python -m benchmarks.evaluate"


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
THREADS = 2
SUBSET = ("plain loop", "faiss flat")  # these rank only some of the queries

Case = list[Tensor]  # codes of the queries [Q, K] and of the database [D, K], their labels [Q, C] and [D, C]
Contestant = Callable[[Case, int | None], Tensor]


def make_case(setting: Setting) -> Case:
    """Random ±1 codes, distinct in the database above 16 bits; one label of 10, or each label with probability 0.1."""
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
    return [torch.from_numpy(array.astype(np.float32)) for array in (*codes, *labels)]


def precision(relevant: Tensor) -> Tensor:
    """AP of one ranking; relevant [n] (bool) by rank."""
    ranks = torch.nonzero(relevant).flatten() + 1
    if len(ranks) == 0:
        return torch.zeros((), dtype=torch.float64)
    return (torch.arange(1, len(ranks) + 1, dtype=torch.float64) / ranks).mean()


def plain_loop(case: Case, topk: int | None) -> Tensor:
    """AP in stable order by its definition: the database is sorted for each query."""
    query_code, database_code, query_labels, database_labels = case
    torch.set_num_threads(1)
    found = []
    for code, labels in zip(query_code, query_labels, strict=True):
        distance = 0.5 * (len(code) - code @ database_code.T)
        found.append(precision((labels @ database_labels.T > 0)[torch.argsort(distance, stable=True)][:topk]))
    return torch.stack(found)


def faiss_flat(case: Case, topk: int | None) -> Tensor:
    """AP from the ranking of faiss's exact binary index, with ties in the order of faiss."""
    import faiss  # optional

    query_code, database_code, query_labels, database_labels = case
    faiss.omp_set_num_threads(THREADS)

    def packed(codes: Tensor) -> np.ndarray:
        words = np.packbits(codes.numpy() > 0, axis=1)
        return np.pad(words, ((0, 0), (0, -words.shape[1] % 4)))

    index = faiss.IndexBinaryFlat(8 * packed(database_code[:1]).shape[1])
    index.add(packed(database_code))
    found = []
    for codes, labels in zip(query_code.split(20), query_labels.split(20), strict=True):
        ranked = torch.from_numpy(index.search(packed(codes), topk or len(database_code))[1])
        for order, own in zip(ranked, labels, strict=True):
            found.append(precision((database_labels @ own > 0)[order]))
    return torch.stack(found)


def ours(case: Case, topk: int | None, *, engine: str, threads: int = THREADS, ties: str = "expected") -> Tensor:
    """`average_precision`, including checks and packing, with a given engine and number of threads."""
    torch.set_num_threads(threads)
    with mock.patch("utils.hamming.default_engine", lambda *_: engine):
        query_code, database_code, query_labels, database_labels = case
        return average_precision(query_code, database_code, query_labels, database_labels, topk=topk, ties=ties)


CONTESTANTS: dict[str, Contestant] = {
    "plain loop": plain_loop,
    "ours, 1 thread": partial(ours, engine="compiled", threads=1),
    "ours, 2 threads": partial(ours, engine="compiled"),
    "ours, stable": partial(ours, engine="compiled", ties="stable"),
    "without numba": partial(ours, engine="numpy"),
    "torch path": partial(ours, engine="torch"),
}
if importlib.util.find_spec("faiss"):
    CONTESTANTS["faiss flat"] = faiss_flat


def measure(setting: Setting, rounds: int, subset: int) -> list[dict[str, Any]]:
    """Rows of the CSV, one for each contestant; `ratio` is to the plain loop. All must compute the same AP."""
    case = make_case(setting)
    few = [case[0][:subset], case[1], case[2][:subset], case[3]]
    computed: dict[str, Tensor] = {}

    def compute(name: str) -> None:
        computed[name] = CONTESTANTS[name](few if name in SUBSET else case, setting.topk)

    taken = in_turn({name: partial(seconds, partial(compute, name)) for name in CONTESTANTS}, rounds, warm_up=1)
    expected = [values for name, values in computed.items() if name not in (*SUBSET, "ours, stable")]
    assert all(torch.equal(values, expected[0]) for values in expected), "the engines disagree"
    torch.testing.assert_close(computed["ours, stable"][: len(few[0])], computed["plain loop"], rtol=0, atol=1e-12)
    distinct = len(np.unique(case[1].numpy().astype(np.int8), axis=0)) / setting.database
    rows = []
    for name, values in taken.items():
        timed = len(computed[name])
        times = [value * setting.queries / timed for value in values]
        plain = statistics.median(taken["plain loop"]) * setting.queries / len(few[0])
        rows.append(
            {
                "setting": setting.name,
                "queries": setting.queries,
                "database": setting.database,
                "bits": setting.bits,
                "topk": setting.topk or "all",
                "distinct_codes": round(distinct, 3),
                "contestant": name,
                "queries_timed": timed,
                "seconds": f"{statistics.median(times):.5f}",
                "fastest": f"{min(times):.5f}",
                "slowest": f"{max(times):.5f}",
                "ratio": f"{plain / statistics.median(times):.1f}",
                "rounds": rounds,
                "clock": "wall",
                "threads": THREADS,
            }
        )
    return rows


def peak_memory(setting: Setting, engine: str, ties: str) -> float:
    """Peak memory of one evaluation above its inputs, in MiB: the high-water mark of the resident set (Linux)."""
    case = make_case(setting)
    ours([tensor[:100] for tensor in case], None, engine=engine, ties=ties)  # the first call loads and compiles
    Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
    before = memory("VmRSS")
    ours(case, setting.topk, engine=engine, ties=ties)
    return (memory("VmHWM") - before) / 2**20


def main() -> None:
    """Measure what the command line asks for; print it and, for times, write the results."""
    parser = Parser(prog=PROGRAM, description="How fast the evaluation is, and how much memory it needs.")
    count = bounded(int, 1)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds; results/ does not change")
    parser.add_argument("--rounds", type=count, default=7, help="timed rounds [7]")
    parser.add_argument("--subset", type=count, default=20, help="queries that the plain loop and faiss rank [20]")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time (Linux)")
    given = parser.parse_args()
    settings, rounds = (QUICK, 2) if given.quick else (SETTINGS, given.rounds)
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, numpy {np.__version__}, {THREADS} threads")
    if given.memory:
        engines = [("compiled", "expected"), ("compiled", "stable"), ("numpy", "expected"), ("numpy", "stable")]
        for setting in settings:
            for engine, ties in [*engines, ("torch", "expected")]:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    peak = pool.apply(peak_memory, (setting, engine, ties))
                print(f"{setting.name}: {engine}, {ties}: {peak:.0f} MiB above the inputs", flush=True)
        return
    print(f"Medians of {rounds} rounds; plain loop and faiss: {given.subset} queries, scaled to all")
    rows, table = [], []
    for setting in settings:
        measured = measure(setting, rounds, given.subset)
        cells = [f"{float(row['seconds']):.3f} s ({float(row['ratio']):.3g}×)" for row in measured]
        rows += measured
        table.append([setting.name, *cells])
    print_table(["setting", *CONTESTANTS], table)
    if not given.quick:
        write_results(RESULTS / "evaluate.csv", rows)


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, main))
