"""The latent graph of SCHN: one graph convolution and the latent code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.gcn.layers import GraphConvolution, normalise_adjacency


class GraphHash(nn.Module):
    """Z = relu(graph convolution), U_latent = sigmoid(Linear(dropout(Z))).

    With the sigmoid U_latent is in (0, 1), although codes are ±1. The authors' release does this, so we do, too.
    Ablations: `latent` "tanh", so that U_latent is in (-1, 1) like all other codes; `adjacency` "normalised"
    (`normalise_adjacency`) instead of "raw".
    """

    def __init__(
        self,
        in_dim: int,
        latent_dim: int,
        code_length: int,
        *,
        dropout: float = 0.5,
        latent: str = "sigmoid",
        adjacency: str = "raw",
    ) -> None:
        super().__init__()
        self.gc = GraphConvolution(in_dim, latent_dim)
        self.dropout = nn.Dropout(dropout)
        self.hash_code_layer = nn.Linear(latent_dim, code_length)
        self.activation = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}[latent]
        self.normalised = {"raw": False, "normalised": True}[adjacency]

    def forward(self, x: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, in_dim], similarity S [N, N] in {0, 1} → (U_latent [N, K], Z [N, latent_dim])."""
        adjacency = normalise_adjacency(similarity) if self.normalised else similarity
        latent_features = torch.relu(self.gc(x, adjacency))
        latent_code = self.activation(self.hash_code_layer(self.dropout(latent_features)))
        return latent_code, latent_features
