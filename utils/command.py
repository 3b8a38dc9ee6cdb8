"""How every command of the project reads its flags and ends."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from utils.errors import UserError
from utils.interrupt import Interrupted, handled_by

# The names that flags accept, apart from the code behind them: `run.py --help` lists them without importing torch.
DATASETS = ("cifar-10", "nus-wide-tc21", "nus-wide-tc10", "flickr25k", "imagenet", "digits", "folder", "lists")
PROTOCOLS = ("pool", "train-5000", "test-10000")  # docs/datasets.md
AUGMENTATIONS = ("crop-flip", "crop", "none")
BACKBONES = ("alexnet", "resnet18", "resnet50", "vit_b_16", "squeezenet1_0")
# An image with more pixels is refused: Pillow needs up to 4 bytes for each. A JPEG may have four times as many, as the
# photos of telephones do, and is then decoded at half its width and height (data/decode.py).
MOST_PIXELS = 50_000_000


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are a UserError: one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


def flag_of(name: str) -> str:
    """The flag that sets an option: "num_query" → "--num-query"."""
    return "--" + name.replace("_", "-")


def bounded(
    kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf, *, exclusive: bool = False
) -> Callable[[str], int | float]:
    """A `type` for `add_argument`: a finite number from `low` to `high`, or between them where `exclusive`.

    Digits of other scripts, which Python reads too, are refused: paths and torch's devices do not know them.
    """
    rules = ["must be a whole number" if kind is int else "must be a number"]
    if low > -math.inf:
        rules.append(f"above {low}" if exclusive else f"{low} or more")
    if high < math.inf:
        rules.append(f"below {high}" if exclusive else f"at most {high}")

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
            allowed = (
                text.isascii() and math.isfinite(value) and (low < value < high if exclusive else low <= value <= high)
            )
        except (ValueError, OverflowError):
            allowed = False
        if not allowed:
            raise argparse.ArgumentTypeError(f"'{text}' {', '.join(rules)}")
        return value

    return parse


def run_command(name: str, work: Callable[[], int | None]) -> int:
    """Run a command and end it in the way that all commands of the project end.

    Args:
        name: what the user typed, e.g. "python -m search encode"; starts every message.
        work: reads the command line and does the work; returns the exit status, or None for 0. The notes of an
            `Interrupted` (`BaseException.add_note`) say what is kept of its work and how to continue.

    Returns:
        The exit status: that of `work`; 2 after a user error, with one line on stderr; 130 after SIGINT and 143 after
        SIGTERM, with one line; 141 where the reader of stdout has gone (`... | head`), without a line.
    """
    try:
        with handled_by(_stop):
            try:
                status = work() or 0
            except SystemExit:  # after --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
        return status
    except UserError as error:
        _say(f"{name}: {error}")
        return 2
    except BrokenPipeError:
        # Python flushes stdout once more at exit (https://docs.python.org/3/library/signal.html#note-on-sigpipe).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (KeyboardInterrupt, Interrupted) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        kept = "; ".join(getattr(error, "__notes__", ["nothing was written"]))
        _say(f"{name}: stopped by {stopped}; {kept}.")
        return stopped.status


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the reader of stderr has gone
        print(line, file=sys.stderr, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
