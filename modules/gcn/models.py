"""The latent graph of SCHN: one graph convolution and the latent code read off it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import GraphConvolution


class GraphHash(nn.Module):
    """Z = relu(graph convolution), U_latent = sigmoid(Linear(dropout(Z))).

    The sigmoid puts U_latent in (0, 1) although codes are ±1; the authors' release does so and so do we.
    """

    def __init__(self, in_dim: int, latent_dim: int, code_length: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.gc = GraphConvolution(in_dim, latent_dim)
        self.dropout = nn.Dropout(dropout)
        self.hash_code_layer = nn.Linear(latent_dim, code_length)

    def forward(self, x: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, in_dim], similarity [N, N] → (U_latent [N, K], Z [N, latent_dim])."""
        latent_features = torch.relu(self.gc(x, similarity))
        latent_code = torch.sigmoid(self.hash_code_layer(self.dropout(latent_features)))
        return latent_code, latent_features
