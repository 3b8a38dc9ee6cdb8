"""The cross-entropy of images with any number of labels, for GreedyHash and OrthoHash."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits [N, C] with the target y / Σy of multi-hot labels y [N, C], the mean over the batch.

    An image without labels adds 0.
    """
    return cross_entropy(logits, labels / labels.sum(dim=1, keepdim=True).clamp(min=1))
