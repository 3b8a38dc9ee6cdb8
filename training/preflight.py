"""Checks before training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from data import Split, hold_out, load_data
from training.settings import Settings
from training.tensorboard import require_tensorboard
from utils import distributed
from utils.errors import UserError
from utils.files import require_writable
from utils.log import log


def preflight(settings: Settings) -> tuple[Settings, torch.device, Split]:
    """Check the settings against the machine and the data; `num_samples` 0 is replaced by its number.

    Raises:
        UserError: no such device, one GPU for several processes, the logs folder is not writable, or the dataset is
            missing or too small.
    """
    device = distributed.own_device(settings.device)
    if distributed.launched_size() > 1 and device.type == "cuda":
        if ":" in settings.device:
            raise UserError(
                f"--device {settings.device}: {distributed.launched_size()} processes cannot train on one GPU; "
                "use cuda, and each takes its own."
            )
        torch.cuda.set_device(device)
    if settings.cuda_graphs and device.type != "cuda":  # no error: a run of a GPU may be resumed elsewhere
        log.warning("--cuda-graphs has no effect on the %s", device)
    require_writable(Path(settings.logs), f"--logs {settings.logs}", create=True)
    if settings.tensorboard:
        require_tensorboard()
    split = load_split(settings)
    if settings.num_samples == 0:
        settings = dataclasses.replace(settings, num_samples=min(Settings.num_samples, len(split.train)))
    if settings.num_samples > len(split.train):
        raise UserError(
            f"--num-samples {settings.num_samples}: the training pool of {settings.dataset} has only "
            f"{len(split.train)} images; give that many or fewer."
        )
    if settings.num_samples < distributed.launched_size():
        raise UserError(
            f"--num-samples {settings.num_samples}: the job has {distributed.launched_size()} processes, and each "
            "needs at least one; draw more rows or start fewer processes."
        )
    return settings, device, split


def load_split(settings: Settings) -> Split:
    """Load the dataset of `settings` and hold out its validation images; the split depends on the seed alone.

    Raises:
        UserError: the dataset is missing, incomplete, or too small for the settings.
    """
    split = load_data(settings.dataset, settings.root, settings.data_options())
    return hold_out(split, settings.validate, settings.seed) if settings.validate else split
