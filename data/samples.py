"""Some images of a dataset or of files, as evaluation shows them to a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.datasets import load_data
from data.image_paths import find_images
from data.options import Options
from data.prepare import prepare_image
from data.windows import eval_image
from utils.errors import UserError


def sample_images(
    settings: dict[str, Any], image_size: int, shorter_side: int, number: int, inputs: Sequence[str], most_pixels: int
) -> np.ndarray:
    """Up to `number` images, uint8 [n, S, S, 3], evenly from `inputs`, or else from the dataset of a run's `settings`.

    None (n = 0) where that dataset is not there, or is one of lists.

    Raises:
        UserError: `inputs` name no image that can be read.
    """
    root = settings.get("root", "")
    if not inputs and settings["dataset"] in ("digits", "cifar-10"):  # in memory, without files of images
        half = load_data(settings["dataset"], root, Options.of(settings)).database
        stored = [half.source.image(row) for row in half.rows[evenly(len(half), number)].tolist()]
        return np.stack([eval_image(one.permute(1, 2, 0).numpy(), image_size, shorter_side) for one in stored])
    if not inputs and (settings["dataset"] != "folder" or not Path(root).is_dir()):
        return np.empty((0, image_size, image_size, 3), dtype=np.uint8)
    paths = find_images(inputs or [root])
    chosen = [paths[place] for place in evenly(len(paths), number).tolist()]
    prepared = [prepare_image(path, image_size, shorter_side, most_pixels) for path in chosen]
    images = [image for image in prepared if isinstance(image, np.ndarray)]
    if not images:
        raise UserError(f"{', '.join(inputs or [root])}: no image could be read; name others with --images.")
    return np.stack(images)


def evenly(count: int, number: int) -> np.ndarray:
    """`number` places, or all, evenly out of `count`: int64, ascending."""
    return np.linspace(0, count - 1, min(count, number)).astype(np.int64)
