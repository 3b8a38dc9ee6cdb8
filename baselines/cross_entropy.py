"""The cross-entropy of images with any number of labels, for GreedyHash and OrthoHash."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the target y / Σy, the mean over the batch; an image without labels adds 0.

    Args:
        logits: [N, C].
        labels: y, multi-hot [N, C] in {0, 1}, in the dtype of the logits.

    Returns:
        A scalar.
    """
    return cross_entropy(logits, labels / labels.sum(dim=1, keepdim=True).clamp(min=1))
