"""OrthoHash: Hoe, Ng, Zhang, Chan, Song & Xiang, NeurIPS 2021.

"One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective".
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, normalize
from torch.nn.utils.fusion import fuse_linear_bn_eval

from baselines.cross_entropy import label_cross_entropy
from utils.seeding import generator


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm1d that normalises a batch of one image, which has no variance, by the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, K] → [N, K]."""
        if len(input) > 1:
            return super().forward(input)
        return batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def fold_batch_norm(linear: nn.Linear, norm: nn.BatchNorm1d) -> nn.Linear:
    """One linear layer with the output of `norm(linear(x))` in eval mode; neither argument is changed."""
    return fuse_linear_bn_eval(copy.deepcopy(linear).eval(), copy.deepcopy(norm).eval())


class OrthoHash(nn.Module):
    """Cosine similarity to fixed binary targets, with a margin; called as `baselines` describes.

    z has passed a `BatchNorm`, the last layer of the image network. With the targets t_c, C random vectors of ±1:

        logits_c = s ( cos(z, t_c) − m y_c ),   loss = cross-entropy(logits, y / Σy)
    """

    targets: Tensor

    def __init__(
        self, code_length: int, num_classes: int, *, seed: int, margin: float = 0.2, scale: float = 8.0
    ) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        bits = torch.randint(2, (num_classes, code_length), generator=generator(seed, "orthohash", code_length))
        self.register_buffer("targets", 2.0 * bits - 1)  # t [C, K]

    def forward(self, hash_output: Tensor, labels: Tensor, rows: Tensor, progress: float) -> dict[str, Tensor]:
        """The part "classification" (images without labels add 0); `rows` and `progress` are not used."""
        cosine = normalize(hash_output) @ normalize(self.targets.to(hash_output)).T  # [N, C]
        return {"classification": label_cross_entropy(self.scale * (cosine - self.margin * labels), labels)}
