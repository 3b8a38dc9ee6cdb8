"""The discriminator of TOMM: tells the codes of the networks from their reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.mlp import MLP


class ReconstructionDiscriminator(nn.Module):
    """One MLP (K → 1024 → 512 → 1, tanh) for image codes and one for label codes; probability = (tanh + 1) / 2.

    Source: https://doi.org/10.1145/3532519. `hidden_dim` and `feature_dim` are the widths of the hidden layers.
    """

    def __init__(self, code_length: int, *, hidden_dim: int = 1024, feature_dim: int = 512) -> None:
        super().__init__()
        self.model_imageD = MLP(code_length, 1, hidden_dim=hidden_dim, feature_dim=feature_dim)
        self.model_labelD = MLP(code_length, 1, hidden_dim=hidden_dim, feature_dim=feature_dim)

    def forward(self, image_code: Tensor, label_code: Tensor) -> Tensor:
        """Two codes [N, K] → probabilities of being real [2N], first of the image codes, then of the label codes."""
        scores = torch.cat((self.model_imageD(image_code)[1], self.model_labelD(label_code)[1]))  # [2N, 1]
        return (scores.squeeze(1) + 1) / 2
