"""What the commands over a trained model share: their flags, and how they end."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from types import FrameType

from .errors import UserError
from .interrupt import Interrupted


def add_encoding_flags(parser: argparse.ArgumentParser) -> None:
    """`--device`, `--batch-size` and `--num-workers`."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N [auto]")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once on a GPU [64]")
    parser.add_argument(
        "--num-workers", type=int, default=0, metavar="N", help="threads that read images ahead; 0: one a processor"
    )


def require_least(options: argparse.Namespace, **least: int) -> None:
    """UserError where an option that was given is less than the number after its name."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value}: must be {smallest} or more.")


def run_command(name: str, work: Callable[[], None]) -> int:
    """Run a command and say in a sentence on stderr why it ended early.

    Args:
        name: what the user typed, e.g. "python -m utils.encode".
        work: the command. The notes of a KeyboardInterrupt or an Interrupted say what is kept of its work.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 after SIGINT or 143 after SIGTERM.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        work()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        kept = "; ".join(getattr(error, "__notes__", ["nothing was written"]))
        print(f"{name}: stopped by {stopped}; {kept}.", file=sys.stderr)
        return stopped.status
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)
