"""CSQ: Yuan et al., "Central Similarity Quantization for Efficient Image and Video Retrieval", CVPR 2020."""

from __future__ import annotations

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.seeding import generator

TRIES = 200  # draws of random centres, of which the best is taken


def hash_centres(code_length: int, num_classes: int, seed: int) -> Tensor:
    """One centre of ±1 for each class [C, K], in torch's default dtype.

    Where K is a power of 2 and C ≤ 2K they are the first rows of the Hadamard matrix H_K and then of −H_K, any two of
    which differ in K/2 bits or more. Otherwise they are random and balanced (K odd: up to one bit), the draw with the
    largest smallest distance out of `TRIES`.
    """
    if code_length & (code_length - 1) == 0 and num_classes <= 2 * code_length:
        rows = torch.tensor(hadamard(code_length), dtype=torch.get_default_dtype())
        return torch.cat((rows, -rows))[:num_classes]
    random = generator(seed, "csq", "centres", code_length)
    best, largest = torch.empty(0), -1.0
    for _ in range(TRIES):
        centres = _balanced(num_classes, code_length, random)
        distance = (code_length - centres @ centres.T) / 2
        smallest = float(distance.fill_diagonal_(code_length).min())
        if smallest > largest:
            best, largest = centres, smallest
    return best


def _balanced(num: int, code_length: int, random: torch.Generator) -> Tensor:
    """`num` random vectors with as many +1 as −1 [num, K]; K odd: one more of either sign, at random."""
    order = torch.rand(num, code_length, generator=random).argsort(dim=1)
    sign = 1 - 2 * torch.randint(2, (num, 1), generator=random)
    return (sign * (1 - 2 * (order < code_length // 2).long())).to(torch.get_default_dtype())


class CSQ(nn.Module):
    """Distance to the hash centre of an image's classes; called as `baselines` describes.

    With u = tanh(z) and c the target of an image, the sign of the sum of the centres of its classes (where the sum is
    0, the bit of one fixed random vector):

        loss = BCE((u + 1)/2, (c + 1)/2) + λ mean( (|u| − 1)² )
    """

    centres: Tensor
    ties: Tensor

    def __init__(self, code_length: int, num_classes: int, *, seed: int, weight: float = 1e-4) -> None:
        super().__init__()
        self.weight = weight  # λ
        self.register_buffer("centres", hash_centres(code_length, num_classes, seed))
        bits = torch.randint(2, (code_length,), generator=generator(seed, "csq", "ties", code_length))
        self.register_buffer("ties", 2.0 * bits - 1)

    def targets(self, labels: Tensor) -> Tensor:
        """c of multi-hot labels [N, C] → [N, K] in ±1; an image without labels has the vector that decides ties."""
        total = labels @ self.centres.to(labels)
        return torch.where(total == 0, self.ties.to(labels), total.sign())

    def forward(self, hash_output: Tensor, labels: Tensor, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """Parts "centre" (images without labels add 0) and "quantisation"; `rows` and `progress` are not used."""
        # (tanh(z) + 1)/2 is sigmoid(2z), and the cross-entropy of logits does not overflow.
        bits = (self.targets(labels) + 1) / 2  # [N, K] in {0, 1}
        distance = binary_cross_entropy_with_logits(2 * hash_output, bits, reduction="none").mean(dim=1)  # [N]
        labelled = (labels > 0).any(dim=1)
        return {
            "centre": (distance * labelled).mean(),
            "quantisation": self.weight * (hash_output.tanh().abs() - 1).square().mean(),
        }
