"""What a command says on stderr while it works: log lines, and a bar for what takes long."""

from __future__ import annotations

import io
import logging
import os
import sys

from tqdm import tqdm

log = logging.getLogger("schn")

LINE_SECONDS = 20  # between two lines of a bar where stderr is not a terminal


def launched_rank() -> int:
    """The rank that torchrun gave this process; known before the processes are connected."""
    return int(os.environ.get("RANK", "0"))


class _BarHandler(logging.Handler):
    """Prints log lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """INFO lines with the time of day, on stderr; under torchrun only process 0 logs below WARNING."""
    handler = _BarHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    level = logging.WARNING if launched_rank() else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _LogLines(io.TextIOBase):
    """A file that makes a log line of what tqdm writes to it."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info("%s", text.strip())
        return len(text)


def progress_bar(
    text: str, total: int, unit: str, *, initial: int = 0, unit_scale: int | bool = False, leave: bool = False
) -> tqdm:
    """A bar on a terminal; elsewhere a log line every `LINE_SECONDS`, none for shorter work. Only process 0 shows it.

    `text` stands before the bar, `total` counts in `unit`, `initial` of which are done; `leave` the bar at the end.
    """
    if launched_rank():
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(
            desc=text, total=total, unit=unit, initial=initial, unit_scale=unit_scale, leave=leave, dynamic_ncols=True
        )
    return tqdm(
        desc=text,
        total=total,
        unit=unit.strip(),
        initial=initial,
        unit_scale=unit_scale,
        leave=False,
        file=_LogLines(),
        position=0,
        delay=LINE_SECONDS,
        mininterval=LINE_SECONDS,
        miniters=1,
        bar_format="{desc}: {percentage:.0f} % ({n_fmt}/{total_fmt} {unit}), {elapsed}, {remaining} left{postfix}",
    )


def printable(name: str) -> str:
    """A file name that any terminal can show: bytes that are not UTF-8 and control characters become �."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
