"""What the commands of this package share: writing lists, a report of counts, and how a command ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from utils.command import run_command
from utils.files import write_file
from utils.interrupt import Interrupted


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write one name per line.

    Raises:
        UserError: the file could not be written.
    """
    content = "".join(f"{name}\n" for name in names).encode()
    write_file(path, lambda file: file.write(content), "DIR")


def write_label_rows(path: Path, labels: np.ndarray) -> None:
    """Write one row of 0 and 1, separated by blanks, per line; `labels` is uint8 [n, C].

    Raises:
        UserError: the file could not be written.
    """
    characters = np.full((len(labels), 2 * labels.shape[1]), ord(" "), dtype=np.uint8)
    characters[:, ::2] = labels + ord("0")
    characters[:, -1] = ord("\n")
    write_file(path, lambda file: file.write(characters.tobytes()), "DIR")


def count_line(what: str, count: int, expected: int) -> str:
    """A line of the report, with the count of the complete release where it differs."""
    note = "" if count == expected else f"   (complete release: {expected:,})"
    return f"  {what}: {count:,}{note}"


def print_report(name: str, work: Callable[[], list[str]]) -> int:
    """`run_command` of a command that prints the lines of its report; what it has written is kept if it is stopped."""

    def report() -> None:
        try:
            lines = work()
        except Interrupted as stopped:
            stopped.add_note("the files written so far are kept; run the command again to continue")
            raise
        print("\n".join(lines))

    return run_command(name, report)
