"""`model_image` with other networks than AlexNet, which the papers use."""

from __future__ import annotations

import os

from torch import Tensor, nn
from torchvision.models import get_model

from modules.alexnet import AlexNetHash
from modules.pretrained import load_weights
from utils.command import BACKBONES
from utils.errors import UserError

# With the ImageNet weights the averaged channels of SqueezeNet 1.0 have a root mean square of 33 on images of 64 pixels
# and of 11 on 224 (300 images of CIFAR-10). Left as they are, they saturate the tanh of the codes and the attention
# before the first step (docs/comparison.md).
SQUEEZENET_SCALE = 32
SMALLEST = {"alexnet": 63, "squeezenet1_0": 21}  # pixels; below, the last max pooling would have nothing left


class BackboneHash(nn.Module):
    """Images [N, 3, S, S] → (F_image [N, F], U_image [N, K]); U_image = tanh(Linear F → K).

    F_image is the input of the last layer of torchvision's network: the pooled features of a ResNet (F = 512 or 2048),
    the class token of ViT-B/16 (F = 768); of SqueezeNet 1.0 the 512 channels before the classifier, averaged over the
    image and divided by 32, without dropout. State-dict names are "backbone." + torchvision's names, and `hash_layer`.
    `weights`: as for `AlexNetHash`. ViT-B/16 needs an `image_size` S that is a multiple of its patch size 16, and 224
    with the ImageNet weights.

    Raises:
        UserError: the weights cannot be downloaded or read, or do not fit, or ViT-B/16 cannot use the image size.
    """

    def __init__(
        self, backbone: str, code_length: int, *, weights: str | os.PathLike[str] | None, image_size: int
    ) -> None:
        super().__init__()
        self.feature_scale = 1
        if backbone == "vit_b_16":
            if image_size % 16:
                raise UserError(f"--image-size {image_size}: vit_b_16 needs a multiple of 16; use 224, for example.")
            self.backbone = get_model(backbone, weights=None, image_size=image_size)
            self.feature_dim, head = self.backbone.hidden_dim, "heads."
            self.backbone.heads = nn.Identity()
        elif backbone == "squeezenet1_0":
            self.backbone = get_model(backbone, weights=None)
            self.feature_dim, head = self.backbone.classifier[1].in_channels, "classifier."
            self.backbone.classifier = nn.AdaptiveAvgPool2d(1)
            self.feature_scale = SQUEEZENET_SCALE
        else:
            self.backbone = get_model(backbone, weights=None)
            self.feature_dim, head = self.backbone.fc.in_features, "fc."
            self.backbone.fc = nn.Identity()
        self.hash_layer = nn.Sequential(nn.Linear(self.feature_dim, code_length), nn.Tanh())
        if weights is not None:
            load_weights(self, backbone, str(weights), head=head, prefix="backbone.")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [N, 3, S, S], ImageNet-normalised → (features [N, F], code [N, K] in (-1, 1))."""
        features = self.backbone(images) / self.feature_scale
        return features, self.hash_layer(features)


def image_network(
    backbone: str,
    code_length: int,
    *,
    weights: str | os.PathLike[str] | None = "imagenet",
    image_size: int = 224,
) -> AlexNetHash | BackboneHash:
    """The network with a name in `BACKBONES`; `feature_dim` is the width of F_image. `weights` "none" means None.

    Raises:
        UserError: an unknown name, images that are too small for it, or as `AlexNetHash` and `BackboneHash`.
    """
    if backbone not in BACKBONES:
        raise UserError(f"--backbone {backbone}: unknown; use one of {', '.join(BACKBONES)}.")
    if image_size < SMALLEST.get(backbone, 0):
        raise UserError(f"--image-size {image_size}: {backbone} needs {SMALLEST[backbone]} or more, such as 224.")
    if weights == "none":
        weights = None
    if backbone == "alexnet":
        return AlexNetHash(code_length, weights=weights)
    return BackboneHash(backbone, code_length, weights=weights, image_size=image_size)
