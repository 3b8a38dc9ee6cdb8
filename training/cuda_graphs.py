"""`--cuda-graphs`: start many kernels together; starting them one by one can take longer than computing.

`RecordedStep` replays a whole training step, `replay_forward` one network, for steps whose tensors change their size.
See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# The losses of a mini-batch by name, scalars, and the codes of its images.
Step = Callable[..., tuple[dict[str, Tensor], Tensor]]


class RecordedStep:
    """A training step whose kernels are recorded in the second mini-batch and replayed from then on.

    Batches of other shapes than the first one, such as the last one of a pass, are computed as usual. A rate that a
    schedule has changed is a number in the recording, so the step is recorded again.

    Args:
        step: mini-batch tensors → (losses, codes). It updates the networks, and never waits for the GPU.
        optimizers: those that it steps.
    """

    def __init__(self, step: Step, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
        self._step = step
        self._groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group in self._groups:
            group["capturable"] = True
        self._shapes: list[torch.Size] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """As `step`; the codes lie in memory that the next call overwrites."""
        shapes = [tensor.shape for tensor in inputs]
        if self._shapes is None:  # memory for the moments of Adam and for the libraries is taken in a first step
            self._shapes = shapes
            return self._first(*inputs)
        if shapes != self._shapes:
            return self._step(*inputs)
        if self._graph is None or self._rates != self._current_rates():
            self._record(*inputs)
        assert self._graph is not None
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return {name: value.clone() for name, value in self._losses.items()}, self._codes

    def _current_rates(self) -> list[float]:
        return [group["lr"] for group in self._groups]

    def _first(self, *inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """On a stream of its own, as torch asks for before a recording."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            done = self._step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return done

    def _record(self, *inputs: Tensor) -> None:
        """Record the kernels; nothing is computed."""
        self._rates = self._current_rates()
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # The gradients are added on the stream of the recording; torch waits for it where it must.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        # Threads that read images may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            losses, codes = self._step(*self._inputs)
        self._losses = {name: value.detach() for name, value in losses.items()}
        self._codes = codes.detach()


def replay_forward(network: nn.Module) -> None:
    """From the first training batch on, record forward and backward of `network` and replay them.

    Only batches of the shapes of the first one are replayed, in train mode; others are computed as usual. The outputs
    lie in memory that the next call overwrites: no other call may come between a forward pass and its backward pass.
    """
    plain = network.forward
    shapes: list[torch.Size] = []
    replayed = plain

    def forward(*inputs: Tensor) -> Any:
        nonlocal replayed
        if not network.training:
            return plain(*inputs)
        if not shapes and torch.is_grad_enabled():
            shapes.extend(tensor.shape for tensor in inputs)
            replayed = _recorded(network, plain, inputs)
        return replayed(*inputs) if [tensor.shape for tensor in inputs] == shapes else plain(*inputs)

    network.forward = forward


def _recorded(network: nn.Module, plain: Any, inputs: tuple[Tensor, ...]) -> Any:
    wrapper = network.forward
    # Recording runs the network several times; statistics of batch norm and the draws of dropout must not notice.
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    device = inputs[0].device
    state = torch.cuda.get_rng_state(device)
    examples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs)
    network.forward = plain
    precision = torch.get_autocast_dtype("cuda")
    # The recorded gradients are added on the stream of the recording; torch waits for it where it must.
    warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
    with torch.autocast("cuda", precision, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
        torch.cuda.make_graphed_callables(network, examples, allow_unused_input=True)
    replayed, network.forward = network.forward, wrapper
    for buffer, value in buffers:
        buffer.copy_(value)
    torch.cuda.set_rng_state(state, device)
    return replayed
