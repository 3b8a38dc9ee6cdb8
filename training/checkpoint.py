"""Checkpoints: everything that training needs to continue as if it had never stopped."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from training.run_folder import RunFolder
from utils import distributed
from utils.errors import UserError
from utils.interrupt import Interrupted
from utils.runs import checkpoints, read_checkpoint


class Stateful(Protocol):
    """A network, an optimiser, a schedule or a recorder."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoint:
    """Saves and restores one code length of a run.

    A checkpoint holds the state of every part (networks, optimisers, ...), B, the number of finished iterations and the
    state of torch's generators, from which dropout draws. Every other draw depends on seed and iteration alone.
    """

    def __init__(self, run: RunFolder, code_length: int, codes: Tensor | None, **parts: Stateful) -> None:
        self.run, self.code_length, self.codes, self.parts = run, code_length, codes, parts

    def save(self, iteration: int) -> None:
        """Write a checkpoint every `save_iter` iterations, after the last one, and where a signal asks to stop.

        Raises:
            UserError: it could not be written; the previous checkpoint is intact.
            Interrupted: a signal has asked the run to stop; the checkpoint has been written.
        """
        done, every = iteration + 1, self.run.settings.save_iter
        stop = distributed.largest(self.run.stop.number or 0)  # a signal to one process stops all
        if stop or (every > 0 and (done % every == 0 or done == self.run.settings.max_iter)):
            self._write(done)
        if stop:
            raise Interrupted(stop)

    def _write(self, done: int) -> None:
        state = {
            "code_length": self.code_length,
            "iteration": done,
            "codes": None if self.codes is None else self.codes.to(torch.int8),  # ±1 and 0: exact
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": distributed.of_all(torch.get_rng_state()),
            "generators_cuda": distributed.of_all(_cuda_generator(self.run.device)),
        }
        self.run.save_checkpoint(self.code_length, done, state)

    def restore(self) -> int:
        """Load the newest checkpoint of this code length, if there is one; returns the number of finished iterations.

        Raises:
            UserError: the file is damaged or does not fit the networks.
        """
        found = checkpoints(self.run.path, self.code_length)
        if not found:
            self.run.forget_metrics(self.code_length, 0)
            return 0
        _, path = found[-1]
        state = read_checkpoint(path)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            if self.codes is not None:
                self.codes.copy_(state["codes"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{path}: does not fit this run ({error}); remove it to resume from an earlier checkpoint."
            ) from error
        if len(state["generator"]) != distributed.size():
            raise UserError(
                f"{path}: was saved by {len(state['generator'])} processes, and now there are "
                f"{distributed.size()}, which would change the results; start the same number of processes."
            )
        torch.set_rng_state(state["generator"][distributed.rank()])
        cuda = state["generators_cuda"][distributed.rank()]
        if self.run.device.type == "cuda" and len(cuda):
            torch.cuda.set_rng_state(cuda, self.run.device)
        self.run.forget_metrics(self.code_length, state["iteration"])
        return state["iteration"]


def _cuda_generator(device: torch.device) -> Tensor:
    """The state of the GPU's generator; empty on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0, dtype=torch.uint8)
