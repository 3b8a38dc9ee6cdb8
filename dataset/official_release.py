"""What the commands of this package share: writing lists, a report of counts, and how a command ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.command import Parser, run_command
from utils.files import write_file
from utils.interrupt import Interrupted


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write one name per line.

    Raises:
        UserError: the file could not be written.
    """
    content = "".join(f"{name}\n" for name in names).encode()
    write_file(path, lambda file: file.write(content), "DIR")


def write_lists(folder: Path, files: tuple[str, str], names: Iterable[str], labels: np.ndarray) -> None:
    """Write an image list and its label list; `labels` is 0 or 1, int [n, C].

    Raises:
        UserError: a file could not be written.
    """
    write_names(folder / files[0], names)
    write_names(folder / files[1], (" ".join(map(str, row)) for row in labels.tolist()))


def count_line(what: str, count: int, expected: int) -> str:
    """A line of the report, with the count of the complete release where it differs."""
    note = "" if count == expected else f"   (complete release: {expected:,})"
    return f"  {what}: {count:,}{note}"


def missing_lines(names: Sequence[str]) -> list[str]:
    """The line of the report that names the first ten missing images, if there are any."""
    return [f"  the first missing images: {', '.join(names[:10])}"] if names else []


def print_report(parser: Parser, arguments: Sequence[str] | None, work: Callable[..., list[str]]) -> int:
    """`run_command` of `work` with the flags as arguments, which returns the lines of a report; returns the status."""

    def report() -> None:
        given = vars(parser.parse_args(arguments))
        try:
            print("\n".join(work(**given)))
        except Interrupted as stopped:
            stopped.add_note("the files written so far are kept; run the command again to continue")
            raise

    return run_command(parser.prog, report)
