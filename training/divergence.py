"""Training that diverges ends with one message, in every method and wherever it shows first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.errors import UserError


def diverged(what: str, iteration: int) -> UserError:
    """The error for `what` ("the loss is not a finite number"); `iteration` counts from 1."""
    return UserError(
        f"Training diverged: {what} at iteration {iteration}; lower --lr or --weight-decay. "
        "Earlier checkpoints are kept."
    )


def require_finite_losses(losses: Mapping[str, float], iteration: int) -> None:
    """`diverged` where the mean of a loss is not finite."""
    broken = [part for part, value in losses.items() if not math.isfinite(value)]
    if broken:
        raise diverged(f"the loss ({', '.join(broken)}) is not a finite number", iteration)


def require_finite_state(parts: Mapping[str, Any], iteration: int) -> None:
    """`diverged` where a weight or a buffer of a network, or a number that an optimiser keeps, is not finite."""
    for name, part in parts.items():
        # An infinite mean square of a gradient makes Adam's steps 0: the network would silently learn nothing.
        if not all(bool(torch.stack(tensor.aminmax()).isfinite().all()) for tensor in _tensors(part)):
            raise diverged(f"{name} holds numbers that are not finite", iteration)


def require_codes(codes: Tensor, whose: str, iteration: int) -> None:
    """`diverged` where codes [n, K] are not finite, or one of them is 0 in every bit."""
    if not bool(codes.isfinite().all()):
        raise diverged(f"the {whose} codes are not finite numbers", iteration)
    if bool((codes == 0).all(dim=1).any()):
        raise diverged(f"the {whose} codes are 0", iteration)


def _tensors(part: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a network or an optimiser; none of anything else."""
    values: list[Any] = []
    if isinstance(part, nn.Module):
        values = list(part.state_dict().values())
    elif isinstance(part, Optimizer):
        values = [value for state in part.state.values() for value in state.values()]
    return (value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.numel())
