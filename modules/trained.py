"""The image network of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from modules.backbones import image_network
from utils.errors import UserError
from utils.files import load_tensors
from utils.runs import choose_model, read_config

# What the code of an image depends on besides the weights, and what says where they come from.
SETTINGS = ("backbone", "code_length", "image_size", "dataset", "method")


def load_network(folder: Path, code_length: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The image network of a run in eval mode, on the CPU, and its `SETTINGS`; only tensors are unpickled.

    Raises:
        UserError: there is no such model, or its files are damaged or do not belong together.
    """
    settings = {"backbone": "alexnet", **read_config(folder)["settings"]}  # older runs had AlexNet and no such setting
    code_length, path = choose_model(folder, code_length)
    settings["code_length"] = code_length
    if not {"dataset", "image_size"} <= settings.keys():
        raise UserError(f"{folder}: its config.json has no dataset or image_size; restore it or choose another run.")
    with torch.device("meta"):  # shapes only: draws no random numbers for weights that are replaced at once
        empty = image_network(settings["backbone"], code_length, weights=None, image_size=settings["image_size"])
    state, network = load_tensors(path, "a model"), empty.to_empty(device="cpu")
    try:
        network.load_state_dict(state)  # strict, and in the dtypes of the network
    except Exception as error:  # torch raises several types
        what, reason = f"{settings['backbone']} with {code_length} bits", str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: not the model of {what} ({reason}); restore it or choose another run.") from error
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise UserError(f"{path}: has weights that are not finite: the training diverged; choose another run.")
    return network.eval().requires_grad_(False), {name: settings.get(name) for name in SETTINGS}
