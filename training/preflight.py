"""Checks before training."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from pathlib import Path

import torch

from data import Split, hold_out, load_data
from data.data_loader import smallest_batch
from modules import image_network
from modules.discrete import similar_pairs
from training.settings import Settings
from training.tensorboard import require_tensorboard
from utils import distributed
from utils.devices import require_working
from utils.errors import UserError
from utils.files import require_writable
from utils.log import log
from utils.runs import checkpoints, has_result, read_results


def preflight(settings: Settings, fresh: Collection[int] | None = None) -> tuple[Settings, torch.device, Split]:
    """Check the settings against the machine and the data; `num_samples` 0 is replaced by its number.

    What needs no image is checked before the first image is decoded. `fresh` are the code lengths that start from
    --weights, not from a checkpoint; None: all.

    Raises:
        UserError: no such device, one GPU for several processes, the logs folder is not writable, the weights or the
            image size do not fit the network, or the dataset is missing, too small or of a single class.
    """
    device = usable_device(settings)
    if settings.cuda_graphs and device.type != "cuda":  # no error: a run of a GPU may be resumed elsewhere
        log.warning("--cuda-graphs has no effect on the %s", device)
    elif settings.cuda_graphs and distributed.launched_size() > 1:
        log.warning("--cuda-graphs has no effect with several processes")
    require_writable(Path(settings.logs), f"--logs {settings.logs}", create=True)
    if settings.tensorboard:
        require_tensorboard()
    require_network(settings, settings.code_length if fresh is None else fresh)
    if settings.num_samples:
        require_batches(settings)
    split = load_split(settings)
    if settings.num_samples == 0:
        settings = dataclasses.replace(settings, num_samples=min(Settings.num_samples, len(split.train)))
        require_batches(settings)
    if settings.num_samples > len(split.train):
        raise UserError(
            f"--num-samples {settings.num_samples}: the training pool of {settings.dataset} has only "
            f"{len(split.train)} images; give that many or fewer."
        )
    require_two_classes(split)
    return settings, device, split


def to_start(settings: Settings, folder: Path | None) -> list[int]:
    """The code lengths that a run in `folder` starts from --weights: neither finished nor in a checkpoint."""
    if folder is None:
        return list(settings.code_length)
    rows, iterations = read_results(folder), settings.max_iter
    return [
        bits
        for bits in settings.code_length
        if not has_result(rows, bits, iterations) and not checkpoints(folder, bits)
    ]


def usable_device(settings: Settings) -> torch.device:
    """The device of this process.

    Raises:
        UserError: no such device, one GPU for several processes, or a GPU that cannot compute.
    """
    device = distributed.own_device(settings.device)
    if device.type == "cuda":
        if distributed.launched_size() > 1:
            if ":" in settings.device:
                raise UserError(
                    f"--device {settings.device}: {distributed.launched_size()} processes cannot train on one GPU; "
                    "use cuda, and each takes its own."
                )
            torch.cuda.set_device(device)
        require_working(device)
    return device


def require_network(settings: Settings, fresh: Collection[int]) -> None:
    """Build the image network without memory, and read its weights for the code lengths `fresh`.

    Raises:
        UserError: the weights cannot be downloaded or read, or they or the image size do not fit the network.
    """
    for code_length in settings.code_length:
        weights = settings.weights if code_length in fresh else "none"
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")
            image_network(settings.backbone, code_length, weights=weights, image_size=settings.image_size)


def require_batches(settings: Settings) -> None:
    """Let the image network see the smallest batch of a pass, without memory.

    Raises:
        UserError: there are fewer rows than processes, or the network cannot train on so few images of this size.
    """
    processes = distributed.launched_size()
    if settings.num_samples < processes:
        raise UserError(
            f"--num-samples {settings.num_samples}: the job has {processes} processes, and each "
            "needs at least one; draw more rows or start fewer processes."
        )
    smallest, size = smallest_batch(settings.num_samples, settings.batch_size, processes), settings.image_size
    with torch.device("meta"):
        network = image_network(settings.backbone, settings.code_length[0], weights="none", image_size=size)
        try:
            network(torch.empty(smallest, 3, size, size))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--batch-size {settings.batch_size}: a pass over {settings.num_samples} images has a batch of "
                f"{smallest}, and {settings.backbone} cannot train on so few with --image-size {size} ({error}); "
                "choose another --batch-size."
            ) from error


def require_two_classes(split: Split) -> None:
    """Warn of labels that say nothing about similarity.

    Raises:
        UserError: the training images have one class.
    """
    labels, queries = split.train.labels, split.query.labels
    images, classes = len(labels), int((labels > 0).any(dim=0).sum())
    if classes < 2:
        raise UserError(
            f"--dataset {split.name}: the training images have {classes} class{'es' * (classes != 1)}, so there is "
            "nothing to tell apart; give images of two classes or more."
        )
    similar = similar_pairs(labels, labels)
    if similar == images**2:
        log.warning("Every two training images share a label: the codes can learn nothing")
    elif similar <= images:  # each image is similar to itself
        log.warning("No two training images share a label: the codes can learn nothing")
    relevant = similar_pairs(queries, split.database.labels)
    if relevant in (0, len(queries) * len(split.database)):
        log.warning(
            "%s query shares a label with %s database image: every mAP will be %d and says nothing",
            *(("Every", "every", 1) if relevant else ("No", "any", 0)),
        )


def load_split(settings: Settings) -> Split:
    """Load the dataset of `settings` and hold out its validation images; the split depends on the seed alone.

    Raises:
        UserError: the dataset is missing, incomplete, or too small for the settings.
    """
    split = load_data(settings.dataset, settings.root, settings.data_options())
    return hold_out(split, settings.validate, settings.seed) if settings.validate else split
