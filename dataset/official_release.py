"""What the preparation commands share: lists written whole or not at all, and a report of counts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it: after an interruption there is the old file, the new or none."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)


def write_names(path: Path, names: Iterable[str]) -> None:
    """One name a line."""
    write_whole(path, "".join(f"{name}\n" for name in names).encode())


def write_label_rows(path: Path, labels: np.ndarray) -> None:
    """0/1 separated by blanks, a row a line; `labels` uint8 [n, C]."""
    characters = np.full((len(labels), 2 * labels.shape[1]), ord(" "), dtype=np.uint8)
    characters[:, ::2] = labels + ord("0")
    characters[:, -1] = ord("\n")
    write_whole(path, characters.tobytes())


def count_line(what: str, count: int, expected: int) -> str:
    """A line of the report; says so where the whole release would give another number."""
    note = "" if count == expected else f"   (the whole release: {expected:,})"
    return f"  {what}: {count:,}{note}"


def run_command(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, prepare: Callable[[argparse.Namespace], list[str]]
) -> int:
    """Parse, prepare, print the report: exit status 0, or 2 with one sentence for what the user can mend."""
    try:
        report = prepare(parser.parse_args(arguments))
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print("\n".join(report))
    return 0
