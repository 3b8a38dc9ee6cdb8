"""SIGINT (Ctrl-C) and SIGTERM: stop at once, or finish the iteration and save a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from utils.log import log

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The process was asked to stop; `status` is the exit status, 128 + the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """While entered, `handler` receives the `SIGNALS`; one that the shell has set to be ignored stays ignored."""
    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class StopRequest:
    """A handler of training: a signal stops the process at once; where work would be lost, it waits for a checkpoint.

    `deferred` is true from the first mini-batch after a checkpoint until the next checkpoint, except during an
    evaluation: then the first signal is only recorded in `number`, and the second stops the process at once.
    """

    number: int | None = None
    deferred = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None or not self.deferred:
            raise Interrupted(number)
        self.number = number
        log.warning(
            "%s: finishing this iteration, then saving; send the signal again to stop at once.",
            signal.Signals(number).name,
        )
