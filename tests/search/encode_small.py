"""Runs of a small network, and what the tests read from files of codes."""

import json
from pathlib import Path

import numpy as np
import torch

from tests.small_networks import SmallImageNet
from training.settings import Settings

BITS, SIZE = 12, 32  # of the runs that `make_run` makes


def make_run(folder: Path, *code_lengths: int, seed: int = 0, **settings) -> Path:
    """The folder of a run as training leaves it: config.json and one model per code length, by default of 12 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"dataset": "folder", "image_size": SIZE, "code_length": code_lengths or (BITS,), **settings}
    (folder / "config.json").write_text(json.dumps({"settings": Settings.for_dataset(**given).as_json()}))
    for bits in given["code_length"]:
        torch.manual_seed(bits + 1000 * seed)
        torch.save(SmallImageNet("alexnet", bits).state_dict(), folder / f"model_image-{bits}bits.pt")
    return folder


def read(path):
    """The arrays of an npz file."""
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def signs(content):
    """±1 [n, K] from the arrays of a file of codes."""
    return np.unpackbits(content["codes"], axis=1, count=int(content["code_length"])).astype(np.int8) * 2 - 1
