"""What is refused before anything trains."""

from __future__ import annotations

import dataclasses

import torch

from data import Split

from . import distributed
from .errors import UserError
from .run_folder import require_writable
from .settings import Settings
from .splits import load_split
from .tensorboard import require_tensorboard


def preflight(settings: Settings) -> tuple[Settings, torch.device, Split]:
    """Check the settings against the machine and the data.

    Returns:
        The settings, with `num_samples` where the data decide it; what trains; queries and database.

    Raises:
        UserError: no such device, one GPU for several processes, a logs folder that cannot be written to, data that are
            not there or too few.
    """
    device = distributed.own_device(settings.device)
    if distributed.launched_size() > 1 and device.type == "cuda":
        if ":" in settings.device:
            raise UserError(
                f"--device {settings.device}: {distributed.launched_size()} processes cannot train on one GPU; "
                "use cuda, and each takes its own."
            )
        torch.cuda.set_device(device)
    require_writable(settings.logs)
    if settings.tensorboard:
        require_tensorboard()
    split = load_split(settings)
    if settings.num_samples == 0:
        settings = dataclasses.replace(settings, num_samples=min(Settings.num_samples, len(split.database)))
    if settings.num_samples > len(split.database):
        raise UserError(
            f"--num-samples {settings.num_samples}: the database of {settings.dataset} has only "
            f"{len(split.database)} images; give that many or fewer."
        )
    if settings.num_samples < distributed.launched_size():
        raise UserError(
            f"--num-samples {settings.num_samples}: the job has {distributed.launched_size()} processes, and each "
            "needs at least one; draw more or start fewer."
        )
    return settings, device, split
