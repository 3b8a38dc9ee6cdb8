"""`model_image`: torchvision's AlexNet with a hash layer in the place of its last classifier layer."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights, alexnet

from utils.errors import UserError

FEATURE_DIM = 4096


class AlexNetHash(nn.Module):
    """Images [N, 3, H, W] → (F_image [N, 4096], U_image [N, K]).

    F_image is what leaves the second fully connected ReLU (dropout 0.5 before each fully connected layer);
    U_image = tanh(Linear 4096 → K). All layers but the hash layer carry torchvision's names.

    Args:
        code_length: K.
        weights: "imagenet" takes torchvision's `AlexNet_Weights.IMAGENET1K_V1` (downloaded once to torch's cache);
            None starts at random; a path loads a state dict of torchvision's AlexNet or of this class.

    Raises:
        UserError: the weights cannot be downloaded, read, or have another shape.
    """

    def __init__(self, code_length: int, *, weights: str | os.PathLike[str] | None = "imagenet") -> None:
        super().__init__()
        network = alexnet(weights=None)
        self.features = network.features
        self.avgpool = network.avgpool
        # All but the last Linear: dropout, fc6, relu, dropout, fc7, relu.
        self.classifier = nn.Sequential(*list(network.classifier)[:-1])
        self.hash_layer = nn.Sequential(nn.Linear(FEATURE_DIM, code_length), nn.Tanh())
        if weights is not None:
            self._load(imagenet_state() if weights == "imagenet" else read_state(Path(weights)), str(weights))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [N, 3, H, W], ImageNet-normalised → (features [N, 4096], code [N, K] in (-1, 1))."""
        x = self.avgpool(self.features(images))  # [N, 256, 6, 6]
        features = self.classifier(torch.flatten(x, 1))  # [N, 9216] → [N, 4096]
        return features, self.hash_layer(features)

    def _load(self, state: dict[str, Tensor], source: str) -> None:
        own = self.state_dict()
        # torchvision's last layer (1000 classes) has no place here; our hash layer is not in torchvision's file.
        given = {name: value for name, value in state.items() if not name.startswith("classifier.6.")}
        missing = [name for name in own if name not in given and not name.startswith("hash_layer.")]
        unknown = [name for name in given if name not in own]
        wrong = [name for name in given if name in own and given[name].shape != own[name].shape]
        for problem, names in (("lacks", missing), ("has the unknown entry", unknown)):
            if names:
                raise UserError(
                    f"--weights {source}: the file {problem} '{names[0]}' ({len(names)} such); it must be a state dict "
                    "of torchvision's AlexNet or of a trained model_image."
                )
        if wrong:
            name = wrong[0]
            raise UserError(
                f"--weights {source}: '{name}' has shape {tuple(given[name].shape)}, but {tuple(own[name].shape)} is "
                "needed; use AlexNet weights, and for the hash layer the same code length."
            )
        self.load_state_dict(given, strict=False)


def imagenet_state() -> dict[str, Tensor]:
    """The ImageNet weights through torchvision's weights API (hash-checked, cached under torch's hub folder)."""
    try:
        return dict(AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--weights imagenet: torchvision could not fetch the ImageNet weights ({error}); download "
            f"{AlexNet_Weights.IMAGENET1K_V1.url} elsewhere and pass it as --weights FILE, or use --weights none."
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file, never unpickling anything but tensors and plain containers."""
    if not path.is_file():
        raise UserError(f"--weights {path}: there is no such file; give 'imagenet', 'none' or a state-dict file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here: pickle, zip, EOF and runtime errors
        raise UserError(f"--weights {path}: not a state dict saved by torch.save ({type(error).__name__}).") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"--weights {path}: the file holds no state dict (a mapping from names to tensors).")
    return state
