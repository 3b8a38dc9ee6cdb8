"""HashNet: Cao, Long, Wang & Yu, "HashNet: Deep Learning to Hash by Continuation", ICCV 2017."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from modules.discrete import label_similarity

STAGES = 7.5  # the tanh becomes steeper every 20 of 150 epochs


def steepness(progress: float) -> float:
    """β = √(1 + t) with t = ⌊7.5 · progress⌋; `progress` is the share of the schedule that is done, from 0 to 1."""
    return math.sqrt(1 + math.floor(STAGES * progress))


class HashNet(nn.Module):
    """Weighted likelihood of the pairs of a batch; called as `baselines` describes.

    With u = tanh(β z), where β grows during training (`steepness`):

        loss = Σ_ij w_ij ( log(1 + e^{α u_i·u_j}) − α S_ij u_i·u_j ) / N²

    w_ij is N² / number of similar pairs where S_ij = 1, and N² / number of dissimilar pairs where S_ij = 0: the loss is
    the mean over the similar pairs plus the mean over the dissimilar ones. The pairs (i, i) count.
    """

    def __init__(self, *, alpha: float = 0.1) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, hash_output: Tensor, labels: Tensor, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Parts "similar" and "dissimilar", 0 where the batch has no such pair; `rows` is not used."""
        code = torch.tanh(steepness(progress) * hash_output)  # u [N, K]
        product = self.alpha * code @ code.T  # [N, N]
        similarity = label_similarity(labels)  # S
        # Cross-entropy with logits is log(1 + e^x) − S x in a form that does not overflow.
        pairs = binary_cross_entropy_with_logits(product, similarity, reduction="none")
        masks = {"similar": similarity, "dissimilar": 1 - similarity}
        return {name: (mask * pairs).sum() / mask.sum().clamp(min=1) for name, mask in masks.items()}
