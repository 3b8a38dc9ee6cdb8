"""The graph-convolution layer of Kipf & Welling (ICLR 2017, https://arxiv.org/abs/1609.02907)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GraphConvolution(nn.Module):
    """adjacency · (x · weight) + bias; weight and bias start uniform in ±1/√out_features, as in the authors' layer.

    The layer does not normalise the adjacency. SCHN gives it the 0/1 similarity of the batch.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        bound = out_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """x [N, in_features], adjacency [N, N] → [N, out_features]."""
        return torch.addmm(self.bias, adjacency, x @ self.weight)


def normalise_adjacency(similarity: Tensor) -> Tensor:
    """D^-½ S D^-½ with the degrees D = diag(S 1), the normalisation of Kipf & Welling (eq. 2); S [N, N] → [N, N].

    S already has self-loops. A sample without a label is not similar to any sample: its row and column stay 0.
    """
    degree = similarity.sum(dim=1)  # [N]
    scale = torch.where(degree > 0, degree.clamp(min=1).rsqrt(), 0)
    return scale[:, None] * similarity * scale
