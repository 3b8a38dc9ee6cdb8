"""Checkpoints: everything that training needs to go on as if it had never stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from . import distributed
from .errors import UserError
from .interrupt import Interrupted
from .run_folder import RunFolder

KEPT = 2  # checkpoints that stay in a run's folder


class Stateful(Protocol):
    """A network, an optimiser, a schedule or a report."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoint:
    """Saves and restores one code length of a run.

    A checkpoint holds the state of every part, B, the number of finished iterations and the state of torch's
    generators, which dropout draws from. Every other draw is a function of seed and iteration (utils/seeding.py).

    Args:
        run: the run's folder.
        code_length: K.
        codes: B [n_database, K]; restored in place.
        parts: networks, optimisers and the rest by name.
    """

    def __init__(self, run: RunFolder, code_length: int, codes: Tensor, **parts: Stateful) -> None:
        self.run, self.code_length, self.codes, self.parts = run, code_length, codes, parts

    def save(self, iteration: int) -> None:
        """Write a checkpoint where one is due: every `save_iter` iterations and after the last; keep the last two.

        Args:
            iteration: the 0-based iteration that has just ended.

        Raises:
            UserError: it could not be written; the previous checkpoint is intact.
            Interrupted: a signal has asked the run to stop; the checkpoint is written all the same.
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
            "codes": self.codes.to(torch.int8),  # ±1 and 0: exact
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": distributed.of_all(torch.get_rng_state()),
            "generators_cuda": distributed.of_all(_cuda_generator(self.codes.device)),
        }
        self.run.save(f"checkpoint-{self.code_length}bits-{done:06d}.pt", state)
        if self.run.writes:  # another process of the job must not look at files that are being removed
            by_age = sorted(checkpoints(self.run.path), key=lambda path: path.stat().st_mtime_ns)
            for path in by_age[:-KEPT]:
                path.unlink()

    def restore(self) -> int:
        """Load the newest checkpoint of this code length, if there is one; returns the iterations done.

        Raises:
            UserError: the file is damaged or does not fit the networks.
        """
        found = checkpoints(self.run.path, self.code_length)
        if not found:
            self.run.forget_metrics(self.code_length, 0)
            return 0
        path = found[-1]
        state = read_checkpoint(path)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            self.codes.copy_(state["codes"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}: does not fit this run ({error}); remove it to use an earlier one.") from error
        if len(state["generator"]) != distributed.size():
            raise UserError(
                f"{path}: was saved by a job of {len(state['generator'])} processes, this one has "
                f"{distributed.size()}, which would make it another run; start as many."
            )
        torch.set_rng_state(state["generator"][distributed.rank()])
        cuda = state["generators_cuda"][distributed.rank()]
        if self.codes.is_cuda and len(cuda):
            torch.cuda.set_rng_state(cuda, self.codes.device)
        self.run.forget_metrics(self.code_length, state["iteration"])
        return state["iteration"]


def _cuda_generator(device: torch.device) -> Tensor:
    """The state of the GPU's generator; empty on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0, dtype=torch.uint8)


def checkpoints(folder: Path, code_length: int | None = None) -> list[Path]:
    """The checkpoint files of a folder, by code length and iteration."""
    pattern = re.compile(r"checkpoint-(\d+)bits-(\d+)\.pt")
    found = [(path, match) for path in folder.glob("checkpoint-*.pt") if (match := pattern.fullmatch(path.name))]
    keyed = sorted((int(match[1]), int(match[2]), path) for path, match in found)
    return [path for bits, _, path in keyed if code_length in (None, bits)]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU, tensors and plain containers only.

    Raises:
        UserError: the file is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here: pickle, zip, EOF and runtime errors
        raise UserError(f"{path}: a damaged checkpoint ({error}); remove it to go on from an earlier one.") from error
    if not isinstance(state, dict) or not {"iteration", "codes", "parts", "generator"} <= state.keys():
        raise UserError(f"{path}: not a checkpoint of a run; remove it to go on from an earlier one.")
    return state
