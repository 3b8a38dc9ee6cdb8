"""What the benchmarks share: rounds in turn, processes, memory, tables and CSV files."""

from __future__ import annotations

import contextlib
import csv
import io
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from utils.errors import UserError
from utils.files import write_file

T = TypeVar("T")
RESULTS = Path(__file__).parents[1] / "results"


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call, with what it started on a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(works: Mapping[str, Callable[[], T]], rounds: int, warm_up: int) -> dict[str, list[T]]:
    """What each of `works` returns in each round; the first `warm_up` rounds do not count.

    They take turns, so that a change of the machine's load affects all of them.
    """
    found: dict[str, list[T]] = {name: [] for name in works}
    for turn in range(warm_up + rounds):
        for name, work in works.items():
            result = work()
            if turn >= warm_up:
                found[name].append(result)
    return found


@contextlib.contextmanager
def worker(name: str, target: Callable[..., None], *arguments: Any) -> Iterator[Callable[[Any], Any]]:
    """Run `target(connection, *arguments)` in a process of its own; it answers messages until the connection closes.

    Yields a function that sends a message and returns the answer.

    Raises:
        UserError: the process has ended, for example for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    process = context.Process(target=serve, args=(target, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()

    def ask(message: Any) -> Any:
        try:
            connection.send(message)
            return connection.recv()
        except (EOFError, OSError):
            raise UserError(
                f"{name}: its process has ended, see above; if memory ran out, measure less at once."
            ) from None

    try:
        yield ask
    finally:
        connection.close()
        process.join()


def serve(target: Callable[..., None], *arguments: Any) -> None:
    """The process of a worker."""
    with contextlib.suppress(EOFError, BrokenPipeError):  # the connection is closed
        target(*arguments)


def memory(field: str) -> int:
    """Bytes in a line of /proc/self/status: VmRSS (resident) or VmHWM (its peak). Linux only."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |", flush=True)


def write_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV, one line for each row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, lambda file: file.write(text.getvalue().encode()), "The results")
