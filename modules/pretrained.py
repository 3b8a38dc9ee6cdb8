"""Initial weights of an image network: torchvision's, or a state-dict file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from utils.errors import UserError


def load_weights(network: nn.Module, backbone: str, weights: str, *, head: str, prefix: str = "") -> None:
    """Load torchvision's ImageNet weights, or a file, into everything but the hash layer.

    Args:
        network: has a `hash_layer`; its other entries carry torchvision's names behind `prefix`.
        backbone: torchvision's name of the network.
        weights: "imagenet", or the path of a state dict of torchvision's network or of `network` itself.
        head: start of the names of torchvision's last layer (1000 classes), which has no place here.
        prefix: what `network` puts before torchvision's names.

    Raises:
        UserError: the weights cannot be downloaded, read, or have another shape.
    """
    state = imagenet_state(backbone) if weights == "imagenet" else read_state(Path(weights))
    own = network.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith(head)}
    if prefix and not any(name.startswith(prefix) for name in given):
        given = {prefix + name: value for name, value in given.items()}
    missing = [name for name in own if name not in given and not name.startswith("hash_layer.")]
    unknown = [name for name in given if name not in own]
    wrong = [name for name in given if name in own and given[name].shape != own[name].shape]
    for problem, names in (("lacks", missing), ("has the unknown entry", unknown)):
        if names:
            raise UserError(
                f"--weights {weights}: the file {problem} '{names[0]}' ({len(names)} such); it must be a state dict "
                f"of torchvision's {backbone} or of a trained model_image."
            )
    if wrong:
        name = wrong[0]
        raise UserError(
            f"--weights {weights}: '{name}' has shape {tuple(given[name].shape)}, but {tuple(own[name].shape)} is "
            f"needed; use weights of {backbone}, and for the hash layer the same code length."
        )
    network.load_state_dict(given, strict=False)


def imagenet_state(backbone: str) -> dict[str, Tensor]:
    """`IMAGENET1K_V1` through torchvision's weights API (hash-checked, cached under torch's hub folder)."""
    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--weights imagenet: torchvision could not fetch the ImageNet weights ({error}); download "
            f"{weights.url} elsewhere and pass it as --weights FILE, or use --weights none."
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
