"""Several processes, one run: `torchrun --nproc-per-node N run.py …` (docs/performance.md).

Every process holds the same networks and the same B. Each takes its share of the drawn rows; gradients are averaged
before every optimiser step, the codes of the sample are combined before the discrete step, and process 0 writes.
Without torchrun every function here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from utils.devices import choose_device
from utils.errors import UserError
from utils.seeding import derive_seed


def size() -> int:
    """Number of processes of the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the job, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def share() -> tuple[int, int]:
    """(rank, size): the share of the drawn rows that this process takes."""
    return rank(), size()


def launched_size() -> int:
    """The number of processes that torchrun (or another launcher that sets its variables) has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(name: str) -> torch.device:
    """`choose_device`; under torchrun, "auto" and "cuda" give each process its own GPU.

    Raises:
        UserError: an unknown name, no such GPU, or more processes on this machine than GPUs.
    """
    device = choose_device(name)
    if device.type == "cuda" and device.index is None and launched_size() > 1:
        return choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """While entered, the processes of the job are connected: by NCCL on GPUs, by gloo on CPUs.

    Gradients are averaged by a hook on every optimiser, not by DistributedDataParallel around the networks: the result
    is the same, and TOMM's three optimisers, its second forward pass and networks that a backward pass does not reach
    need no special case.
    """
    if launched_size() == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    hook = register_optimizer_step_pre_hook(_average_gradients)
    try:
        yield
    finally:
        hook.remove()
        dist.destroy_process_group()


def _average_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Mean of each gradient over the processes, in place."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    with _peers():
        for wait in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            wait.wait()
    torch._foreach_div_(gradients, size())


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of `values` over the processes, in place: it combines rows that different processes have filled."""
    if size() > 1:
        with _peers():
            dist.all_reduce(values)
    return values


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over the processes; one NaN makes the mean NaN."""
    if size() == 1:
        return values
    total = sum_over_processes(torch.tensor(list(values.values()), dtype=torch.float64, device=_device()))
    return dict(zip(values, (total / size()).tolist(), strict=True))


def average_buffers(network: nn.Module) -> None:
    """Mean of each floating-point buffer over the processes, in place: the running statistics of batch norm.

    Each process has seen other images. Without this each would encode with its own statistics.
    """
    if size() > 1:
        for buffer in network.buffers():
            if buffer.is_floating_point():
                sum_over_processes(buffer).div_(size())


def largest(value: int) -> int:
    """The largest `value` of all processes."""
    if size() == 1:
        return value
    found = torch.tensor([value], device=_device())
    with _peers():
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def of_first(value: Any) -> Any:
    """The value of process 0, in every process."""
    if size() == 1:
        return value
    box = [value]
    with _peers():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def of_all(value: Tensor) -> list[Tensor]:
    """The tensors of all processes, by rank."""
    if size() == 1:
        return [value]
    box: list[Any] = [None] * size()
    with _peers():
        dist.all_gather_object(box, value)
    return box


def seed_dropout(seed: int, *key: int) -> None:
    """Give each process of a job its own dropout. Call it after the networks are built, which must be the same.

    A single process keeps its generator, but for draws of a new `key`.
    """
    if size() > 1 or key:
        torch.manual_seed(derive_seed(seed, "dropout", rank(), *key))


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def _peers() -> Iterator[None]:
    """Turn the failure of another process into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"process {rank()} of {size()} lost the others ({str(error).splitlines()[0][:120]}): one of them has "
            "ended. Resume from the last checkpoint with the same torchrun command and --resume RUN."
        ) from error
