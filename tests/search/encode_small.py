"""Runs of a small network, and `python -m tests.search.encode_small`: its command as a program."""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import search.__main__
import search.encode
import search.encode_job
import search.model
from tests.small_networks import SmallImageNet
from training.settings import Settings

BITS, SIZE = 12, 32  # of the runs that `make_run` makes

# The server imports torch once; every process is then forked from it in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


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


def use_small_parts(monkeypatch, names: int) -> None:
    """Parts of `names` names, and small networks in blocks of 16."""
    monkeypatch.setattr(search.encode_job, "PART", names)
    monkeypatch.setattr(search.encode, "CPU_ROWS", 16)
    monkeypatch.setattr(search.model, "image_network", SmallImageNet)


def start(line, output, slow: float):
    """Start the command in a process of its own and return it.

    Args:
        line: the command line.
        output: a file that receives what the command prints.
        slow: seconds that each image waits, so that a signal arrives while the process works.
    """
    process = CONTEXT.Process(target=_encode, args=([str(word) for word in line], str(output), slow))
    process.start()
    return process


def _encode(line, output, slow):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    _main(line, slow)


def _main(line, slow=0.0):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patches:
        use_small_parts(patches, 32)
        prepare = search.encode.prepare_image

        def slowly(*arguments):
            time.sleep(slow)
            return prepare(*arguments)

        patches.setattr(search.encode, "prepare_image", slowly)
        sys.exit(search.__main__.main(["encode", *line]))


if __name__ == "__main__":  # under torchrun
    _main(sys.argv[1:])
