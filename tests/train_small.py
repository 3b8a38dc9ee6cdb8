"""run.py with small networks, in a process of its own that a test may stop or kill."""

import multiprocessing
import os
import sys
import time

import pytest
import sklearn.datasets  # noqa: F401  the digits need it, and importing it takes a second
import torch

import main_mmasia
import main_tomm
import run
from modules import image_network
from tests.small_networks import in_float64, shrink

# The server imports everything once; every process is then forked from it in a moment.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def start(flags, output, slow=0.0, environment=None, double=False, backbone=False):
    """Start `run.py FLAG…` and return the process.

    Args:
        flags: the command line.
        output: a file that receives what the run prints.
        slow: seconds that each mini-batch waits, so that a signal meets the run at its work.
        environment: variables of the process, such as those that torchrun sets.
        double: train in float64 and without dropout.
        backbone: the image network is the one that the flags name; only the others are small.
    """
    process = CONTEXT.Process(
        target=_train, args=([str(flag) for flag in flags], str(output), slow, environment, double, backbone)
    )
    process.start()
    return process


def _train(flags, output, slow=0.0, environment=None, double=False, backbone=False):
    os.environ.update(environment or {})
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)  # a forked process must not wait for threads that its parent has started
    with pytest.MonkeyPatch.context() as monkeypatch:
        for main in (main_mmasia, main_tomm):
            shrink(monkeypatch, main, dropout=0.0 if double else 0.5)
            if backbone:
                monkeypatch.setattr(main, "image_network", image_network)
            losses = main.cycle_loss_parts

            def slowly(*arguments, losses=losses, **options):
                time.sleep(slow)
                return losses(*arguments, **options)

            monkeypatch.setattr(main, "cycle_loss_parts", slowly)
        if double:
            in_float64(monkeypatch)
        status = run.main(flags)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":  # under torchrun
    with pytest.MonkeyPatch.context() as patches:
        for recipe in (main_mmasia, main_tomm):
            shrink(patches, recipe)
        sys.exit(run.main(sys.argv[1:]))
