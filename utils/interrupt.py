"""SIGINT (Ctrl-C) and SIGTERM: finish the iteration, save a checkpoint, say how to resume."""

from __future__ import annotations

import signal
from types import FrameType

from utils.log import log

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The process was asked to stop; `status` is the exit status, 128 + the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopRequest:
    """While entered, the first signal is recorded in `number`, and the second stops the process at once.

    Training reads `number` at the end of each iteration, when its whole state is a few tensors.
    """

    number: int | None = None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        log.warning(
            "%s: finishing this iteration, then saving; send the signal again to stop at once.",
            signal.Signals(number).name,
        )
