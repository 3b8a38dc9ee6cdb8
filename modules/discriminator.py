"""The discriminator of the TOMM variant: are these codes the networks' own, or reconstructions?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.mlp import MLP


class ReconstructionDiscriminator(nn.Module):
    """One MLP (K → 1024 → 512 → 1, tanh) an image code, one a label code; probability = (tanh + 1) / 2."""

    def __init__(self, code_length: int, *, hidden_dim: int = 1024, feature_dim: int = 512) -> None:
        super().__init__()
        self.model_imageD = MLP(code_length, 1, hidden_dim=hidden_dim, feature_dim=feature_dim)
        self.model_labelD = MLP(code_length, 1, hidden_dim=hidden_dim, feature_dim=feature_dim)

    def forward(self, image_code: Tensor, label_code: Tensor) -> Tensor:
        """Two codes [N, K] → probabilities [2N] of being real: the image codes' first, then the label codes'."""
        scores = torch.cat((self.model_imageD(image_code)[1], self.model_labelD(label_code)[1]))  # [2N, 1]
        return (scores.squeeze(1) + 1) / 2
