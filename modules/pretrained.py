"""Initial weights of an image network: torchvision's ImageNet weights, or a state-dict file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import get_model_weights

from utils.errors import UserError
from utils.files import load_tensors


def load_weights(network: nn.Module, backbone: str, weights: str, *, head: str, prefix: str = "") -> None:
    """Load ImageNet weights, or a file, into `network`.

    Args:
        network: has a `hash_layer`; its other state-dict names are `prefix` followed by torchvision's names.
        backbone: torchvision's name of the network.
        weights: "imagenet", or the path of a state dict of torchvision's network or of `network` itself (`read_state`,
            `without_prefix`). The hash layer keeps its values where the state dict has none for it.
        head: start of the names of torchvision's last layer (1000 classes), which `network` does not have.
        prefix: what `network` puts before torchvision's names.

    Raises:
        UserError: the weights cannot be downloaded or read, or do not fit.
    """
    state = imagenet_state(backbone) if weights == "imagenet" else read_state(Path(weights))
    own = network.state_dict()
    state = without_prefix(state, [name for name in own if not name.startswith("hash_layer.")], prefix)
    given = {name: value for name, value in state.items() if not name.startswith(head)}
    if prefix and not any(name.startswith(prefix) for name in given):
        given = {prefix + name: value for name, value in given.items()}
    missing = [name for name in own if name not in given and not name.startswith("hash_layer.")]
    unknown = [name for name in given if name not in own]
    wrong = [name for name in given if name in own and given[name].shape != own[name].shape]
    for problem, names in (("lacks", missing), ("has the unknown entry", unknown)):
        if names:
            raise UserError(
                f"--weights {weights}: the file {problem} '{names[0]}' ({len(names)} in total); use a state dict "
                f"of torchvision's {backbone} or of a trained model_image."
            )
    if wrong:
        name = wrong[0]
        raise UserError(
            f"--weights {weights}: '{name}' has shape {tuple(given[name].shape)}, but the network needs "
            f"{tuple(own[name].shape)}; use weights of {backbone}, trained with the same code length."
        )
    network.load_state_dict(given, strict=False)


def imagenet_state(backbone: str) -> dict[str, Tensor]:
    """torchvision's `IMAGENET1K_V1` weights; downloaded once to torch's hub folder, with a check of the hash.

    See https://docs.pytorch.org/vision/stable/models.html. Raises a UserError if they cannot be downloaded.
    """
    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--weights imagenet: torchvision could not download the ImageNet weights ({error}); download "
            f"{weights.url} on another machine and give the file as --weights FILE, or use --weights none."
        ) from error


# Where training scripts put the state dict into a checkpoint: PyTorch Lightning's name first, then those in wide use.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU: of `torch.save`, alone or in a checkpoint, or of safetensors.

    Raises:
        UserError: it is missing, damaged, or holds something else.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        state = load_tensors(path, "a state dict")
    except UserError as error:
        raise UserError(f"--weights {error} Use imagenet, none or a state-dict file.") from error
    if isinstance(state, dict):
        inside = [state[name] for name in _WRAPPERS if isinstance(state.get(name), dict)]
        if len(inside) == 1:
            state = inside[0]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"--weights {path}: the file holds no state dict (names and tensors); save model.state_dict() to a file."
        )
    return {str(name): value for name, value in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError  # optional, see requirements-dev.txt
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(
            f"--weights {path}: this format needs the package safetensors; pip install safetensors, or save the "
            "state dict with torch.save."
        ) from None
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else "it is damaged"
        raise UserError(f"--weights {path}: {reason}; use imagenet, none or a state-dict file.") from error


def without_prefix(state: dict[str, Tensor], wanted: Sequence[str], own_prefix: str) -> dict[str, Tensor]:
    """`state` without what wrappers put before every name, such as DataParallel's "module.".

    The names `wanted` may be in `state` with or without `own_prefix`. A prefix is removed only if it is before the name
    of every entry, and the first wanted name follows it.
    """
    firsts = (wanted[0], wanted[0].removeprefix(own_prefix))
    if any(first in state for first in firsts):
        return state
    for first in firsts:
        for found in [name.removesuffix(first) for name in state if name.endswith(f".{first}")]:
            if all(name.startswith(found) for name in state):
                return {name.removeprefix(found): value for name, value in state.items()}
    return state
