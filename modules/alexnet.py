"""`model_image`: torchvision's AlexNet with a hash layer instead of its last classifier layer."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from modules.pretrained import load_weights


class AlexNetHash(nn.Module):
    """Images [N, 3, H, W] → (F_image [N, 4096], U_image [N, K]).

    F_image is the output of the second fully connected ReLU; U_image = tanh(Linear 4096 → K). The state dict has
    torchvision's names, and `hash_layer`.

    `weights` is "imagenet" (torchvision's `IMAGENET1K_V1`), None (random) or the path of a state dict of torchvision's
    AlexNet or of this class.

    Raises:
        UserError: the weights cannot be downloaded or read, or do not fit.
    """

    feature_dim = 4096

    def __init__(self, code_length: int, *, weights: str | os.PathLike[str] | None = "imagenet") -> None:
        super().__init__()
        network = alexnet(weights=None)
        self.features = network.features
        self.avgpool = network.avgpool
        # Without the last Linear: dropout, fc6, relu, dropout, fc7, relu.
        self.classifier = nn.Sequential(*list(network.classifier)[:-1])
        self.hash_layer = nn.Sequential(nn.Linear(self.feature_dim, code_length), nn.Tanh())
        if weights is not None:
            load_weights(self, "alexnet", str(weights), head="classifier.6.")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [N, 3, H, W], ImageNet-normalised, float → (features [N, 4096], code [N, K] in (-1, 1))."""
        x = self.avgpool(self.features(images))  # [N, 256, 6, 6]
        features = self.classifier(torch.flatten(x, 1))  # [N, 9216] → [N, 4096]
        return features, self.hash_layer(features)
