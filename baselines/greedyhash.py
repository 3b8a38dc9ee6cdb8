"""GreedyHash: Su, Zhang, Han & Tian, NeurIPS 2018.

"Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from baselines.cross_entropy import label_cross_entropy


class SignWithIdentityGradient(torch.autograd.Function):
    """sign(z) forward; the gradient passes unchanged."""

    @staticmethod
    def forward(context: Any, hash_output: Tensor) -> Tensor:
        return hash_output.sign()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class GreedyHash(nn.Module):
    """A linear classifier of the binary codes; called as `baselines` describes.

    With b = sign(z), the gradient of which is taken to be the identity, and the logits of a linear layer without bias:

        loss = cross-entropy(W b, y / Σy) + α mean( | |z| − 1 |³ )
    """

    def __init__(self, code_length: int, num_classes: int, *, alpha: float = 0.1) -> None:
        super().__init__()
        self.alpha = alpha
        self.classifier = nn.Linear(code_length, num_classes, bias=False)

    def forward(self, hash_output: Tensor, labels: Tensor, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Parts "classification" (images without labels add 0) and "quantisation"; the rest is not used."""
        code = SignWithIdentityGradient.apply(hash_output)  # b [N, K]
        return {
            "classification": label_cross_entropy(self.classifier(code), labels),
            "quantisation": self.alpha * (hash_output.abs() - 1).abs().pow(3).mean(),
        }
