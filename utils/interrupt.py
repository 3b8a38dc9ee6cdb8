"""SIGINT and SIGTERM: finish the iteration, save, say how to go on."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from .progress import log

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop and has saved a checkpoint; `status` is the exit status, 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class StopRequest:
    """While entered, the first signal is noted in `number` and the second one stops the process at once.

    Training asks at the end of each iteration, the only moment at which its whole state is a handful of tensors.
    """

    number: int | None = None

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        log.warning(
            "%s: finishing this iteration, then saving; send it again to stop at once.", signal.Signals(number).name
        )
