"""A trained image network, from the folder of a run or from an export."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.transform import shorter_side_for
from modules import image_network
from utils.errors import UserError
from utils.files import load_tensors, save_tensors
from utils.runs import model_files, read_config

EXPORT_FORMAT = "schn-model-1"
EXPORTED_SETTINGS = ("backbone", "code_length", "image_size", "dataset", "method")


@dataclass(frozen=True)
class TrainedModel:
    """An image network that is ready to encode.

    Attributes:
        model: images [N, 3, S, S] → (features, code [N, K]); float32, in eval mode, on the CPU when loaded.
        code_length, image_size: K, and S in pixels.
        dataset: the dataset that it was trained on.
        settings: the `EXPORTED_SETTINGS`, on which the code of an image depends besides the weights.
        fingerprint: of the weights (`fingerprint`).
    """

    model: nn.Module
    code_length: int
    image_size: int
    dataset: str
    settings: dict[str, Any]
    fingerprint: str

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side after Resize, before the central crop."""
        # A digit fills its image, so that evaluation does not crop it (data/digits.py).
        return self.image_size if self.dataset == "digits" else shorter_side_for(self.image_size)


def load_model(folder: str | Path, code_length: int | None = None) -> TrainedModel:
    """Load the image network of a run or of an export; only tensors are unpickled.

    Args:
        folder: the folder of a run, or a file of `export_model`.
        code_length: K; None: the only one there.

    Raises:
        UserError: there is no such model, or its files are damaged or do not belong together.
    """
    path = Path(folder)
    if path.is_dir():
        settings = read_config(path)["settings"]
        code_length, file = _choose(path, code_length)
        return _build(settings | {"code_length": code_length}, load_tensors(file, "a model"), file)
    if not path.is_file():
        raise UserError(f"{path}: there is no such folder or file; name the folder of a run, or an exported model.")
    content = load_tensors(path, "a model")
    if not isinstance(content, dict) or content.get("format") != EXPORT_FORMAT:
        raise UserError(f"{path}: not a file of `python -m search export`; name such a file or the folder of a run.")
    settings = content.get("settings")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: the export has no settings; export the model again.")
    if code_length not in (None, settings.get("code_length")):
        raise UserError(
            f"--code-length {code_length}: {path} is a model of {settings.get('code_length')} bits; leave the flag out."
        )
    return _build(settings, content.get("state"), path)


def export_model(trained: TrainedModel, path: str | Path) -> None:
    """Write {"format", "settings": the `EXPORTED_SETTINGS`, "state": the state dict, floats in float16} to a file.

    Raises:
        UserError: a weight is too large for float16, or the file cannot be written.
    """
    state: dict[str, Tensor] = {}
    for name, value in trained.model.state_dict().items():
        value = value.detach().cpu()
        state[name] = value.half() if value.is_floating_point() else value
        if not bool(torch.isfinite(state[name]).all()):
            raise UserError(f"{path}: '{name}' has weights beyond 65,504, the largest number of half precision.")
    content = {"format": EXPORT_FORMAT, "settings": trained.settings, "state": state}
    save_tensors(Path(path), content, "-o")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hexadecimal) of the name, dtype, shape and numbers (row-major) of each entry of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).data.cast("B"))
    return digest.hexdigest()


def _choose(folder: Path, code_length: int | None) -> tuple[int, Path]:
    """The code length and the model file, from the folder of a run."""
    found = model_files(folder)
    listed = ", ".join(map(str, found))
    if not found:
        raise UserError(f"{folder}: has no model_image-*bits.pt; wait until the run has finished a code length.")
    if code_length is None and len(found) > 1:
        raise UserError(f"{folder}: has models of {listed} bits; choose one with --code-length.")
    chosen = next(iter(found)) if code_length is None else code_length
    if chosen not in found:
        raise UserError(f"--code-length {chosen}: {folder} has no such model; it has {listed} bits.")
    return chosen, found[chosen]


def _build(settings: dict[str, Any], state: Any, path: Path) -> TrainedModel:
    """The network that `settings` describe, with `state` loaded from the file `path`."""
    settings = {"backbone": "alexnet", **settings}  # older runs have no such setting and used AlexNet
    for name, kind in (("code_length", int), ("image_size", int), ("dataset", str), ("backbone", str)):
        value = settings.get(name)
        if type(value) is not kind or not value or (isinstance(value, int) and not 0 < value < 2**20):
            shown = f"{value!r:.100}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"
            raise UserError(f"{path}: its settings have {name} {shown}; restore them or choose another model.")
    code_length, image_size, backbone = settings["code_length"], settings["image_size"], settings["backbone"]
    with torch.device("meta"):  # shapes only: draws no random numbers for weights that are replaced at once
        model = image_network(backbone, code_length, weights=None, image_size=image_size)
    model.load_state_dict(_fitting(state, model.state_dict(), path, f"{backbone} with {code_length} bits"), assign=True)
    model.requires_grad_(False).eval()
    kept = {name: settings.get(name) for name in EXPORTED_SETTINGS}
    return TrainedModel(model, code_length, image_size, settings["dataset"], kept, fingerprint(model.state_dict()))


def _fitting(state: Any, own: Mapping[str, Tensor], path: Path, what: str) -> dict[str, Tensor]:
    """`state` in the dtypes of the network; UserError unless it has exactly the entries `own` of the network."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict (a mapping from names to tensors); choose another file.")
    for problem, names in (("lacks", own.keys() - state.keys()), ("has the unknown entry", state.keys() - own.keys())):
        if names:
            raise UserError(f"{path}: {problem} '{min(map(str, names))}' ({len(names)} such); not the model of {what}.")
    result = {}
    for name, value in state.items():
        if value.shape != own[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(own[name].shape)}"
            raise UserError(f"{path}: '{name}' has shape {shapes}; not the model of {what}.")
        if value.layout != torch.strided or value.is_floating_point() != own[name].is_floating_point():
            raise UserError(f"{path}: '{name}' has numbers of another kind ({value.dtype}); not the model of {what}.")
        result[name] = value.to(own[name].dtype)
        if not bool(torch.isfinite(result[name]).all()):
            raise UserError(
                f"{path}: '{name}' has numbers that are not finite: the training diverged; choose another run."
            )
    return result
