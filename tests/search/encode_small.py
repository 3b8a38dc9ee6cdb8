"""Runs of a small network, and `python -m tests.search.encode_small`: its command as a program."""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
import torch

import search.encode
import search.encode_command
import search.encode_job
import search.model
from tests.small_networks import SmallImageNet
from training.settings import Settings

# The server imports torch once; every process is then forked from it in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def make_run(folder: Path, *code_lengths: int, seed: int = 0, **settings) -> Path:
    """A run's folder as training leaves it: config.json and a model for each code length, one of 12 bits if none is
    given."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"dataset": "folder", "image_size": 32, "code_length": code_lengths or (12,), **settings}
    (folder / "config.json").write_text(json.dumps({"settings": Settings.for_dataset(**given).as_json()}))
    for bits in given["code_length"]:
        torch.manual_seed(bits + 1000 * seed)
        torch.save(SmallImageNet("alexnet", bits).state_dict(), folder / f"model_image-{bits}bits.pt")
    return folder


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
        slow: seconds that each image waits, so that a signal meets the process at its work.
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
        sys.exit(search.encode_command.main(line))


if __name__ == "__main__":  # under torchrun
    _main(sys.argv[1:])
