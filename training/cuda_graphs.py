"""`--cuda-graphs`: start the kernels of a network together; starting them one by one can take longer than computing.

See https://docs.pytorch.org/docs/stable/generated/torch.cuda.make_graphed_callables.html.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn


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
