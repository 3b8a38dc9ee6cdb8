"""Checkpoints: everything that training needs to continue as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from training.run_folder import RunFolder, require_same_data
from utils import distributed
from utils.errors import UserError
from utils.interrupt import Interrupted
from utils.log import log
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
        stop = self.asked_to_stop()
        if stop or (every > 0 and (done % every == 0 or done == self.run.settings.max_iter)):
            self.write(done)
        if stop:
            raise Interrupted(stop)

    def asked_to_stop(self) -> int:
        """The number of the signal that asks the run to stop, or 0; a signal to one process stops all."""
        return distributed.largest(self.run.stop.number or 0)

    def write(self, done: int, row: dict[str, Any] | None = None) -> None:
        """Write the checkpoint after `done` iterations; `row` is that of the last one, where it is not yet evaluated.

        Raises:
            UserError: it could not be written; the previous checkpoint is intact.
        """
        state = {
            "code_length": self.code_length,
            "iteration": done,
            "data": self.run.data,
            "row": row,
            "codes": None if self.codes is None else self.codes.to(torch.int8),  # ±1 and 0: exact
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": distributed.of_all(torch.get_rng_state()),
            "generators_cuda": distributed.of_all(_cuda_generator(self.run.device)),
        }
        self.run.save_checkpoint(self.code_length, done, state)
        self.run.stop.deferred = False  # nothing would be lost now

    def restore(self) -> tuple[int, dict[str, Any] | None]:
        """Load the newest checkpoint of this code length, if there is one.

        Returns:
            The number of finished iterations, and the row of the last one where it has to be evaluated (`write`).

        Raises:
            UserError: the file is damaged or does not fit the networks, or belongs to other data.
        """
        found = checkpoints(self.run.path, self.code_length)
        if not found:
            if any(row["code_length"] == self.code_length for row in self.run.results):
                log.warning(
                    "%d bits: no checkpoint is left, so that training starts again from the first iteration",
                    self.code_length,
                )
            self.run.forget_metrics(self.code_length, 0)
            return 0, None
        _, path = found[-1]
        state = read_checkpoint(path)
        require_same_data(path, state.get("data"), self.run.data)
        if state["iteration"] > self.run.settings.max_iter:
            raise UserError(f"{path}: is of a longer run than this one; remove it to resume from an earlier one.")
        try:
            for name, part in self.parts.items():
                load_state(part, state["parts"][name])
            if self.codes is not None:
                if state["codes"].shape != self.codes.shape:  # copy_ would repeat a single row
                    raise ValueError(f"codes {tuple(state['codes'].shape)} instead of {tuple(self.codes.shape)}")
                self.codes.copy_(state["codes"])
            self._restore_generators(path, state)
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(
                f"{path}: does not fit this run ({reason}); remove it to resume from an earlier checkpoint."
            ) from error
        row = state.get("row")
        self.run.forget_metrics(self.code_length, state["iteration"] - (row is not None))
        return state["iteration"], row

    def _restore_generators(self, path: Path, state: dict[str, Any]) -> None:
        saved, size = len(state["generator"]), distributed.size()
        if saved != size:
            if self.run.writes:
                log.warning(
                    "%s was saved by %d processes, and now there are %d: the run continues with other draws of "
                    "dropout and another order of sums, so that its results differ from those without this change",
                    path, saved, size,
                )  # fmt: skip
            distributed.seed_dropout(self.run.settings.seed, state["iteration"])
            return
        torch.set_rng_state(state["generator"][distributed.rank()])
        cuda = state["generators_cuda"][distributed.rank()]
        if self.run.device.type == "cuda" and len(cuda):
            torch.cuda.set_rng_state(cuda, self.run.device)


def load_state(part: Stateful, saved: Any) -> None:
    """`part.load_state_dict(saved)`; what optimisers and schedules take unseen is compared first.

    Raises:
        ValueError, or one of the many errors of torch: it does not fit.
    """
    if isinstance(part, nn.Module):
        part.load_state_dict(saved)
        return
    own = part.state_dict()
    saved = {**own, **saved}  # other versions may have fewer entries
    if isinstance(part, torch.optim.Optimizer):
        groups = zip(own["param_groups"], saved["param_groups"], strict=True)
        saved["param_groups"] = [{**own_group, **group} for own_group, group in groups]
    if not _same_kinds(own, saved):
        raise ValueError(f"the state of {type(part).__name__} has entries of another kind")
    part.load_state_dict(saved)
    if isinstance(part, torch.optim.Optimizer):
        for parameter, values in part.state.items():
            for name, value in values.items():
                if not isinstance(value, Tensor) or value.shape not in (parameter.shape, torch.Size([])):
                    raise ValueError(f"the optimiser's '{name}' does not belong to its parameter")


def _same_kinds(own: Any, saved: Any) -> bool:
    """Whether two nested states have the same entries and types; where the own has no entry yet, any will do."""
    if isinstance(own, dict):
        same = isinstance(saved, dict) and (not own or own.keys() == saved.keys())
        return same and all(_same_kinds(own[name], saved[name]) for name in own)
    if isinstance(own, list | tuple):
        same = isinstance(saved, list | tuple) and len(own) == len(saved)
        return same and all(map(_same_kinds, own, saved))
    return isinstance(saved, int | float if isinstance(own, int | float) else type(own))


def _cuda_generator(device: torch.device) -> Tensor:
    """The state of the GPU's generator; empty on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0, dtype=torch.uint8)
