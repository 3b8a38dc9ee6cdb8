"""Digits: the 1,797 handwritten digits of scikit-learn; 300 queries, 30 per class, drawn by the seed; no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split, split_in_memory
from data.options import Options

IMAGE_SIZE = 64
NUM_QUERY = 300


def load_digits(root: Path, options: Options) -> Split:
    """The digits as RGB, enlarged (bilinear) to S × S once; evaluation sees the whole image, without a central crop.

    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html; `root` is not used.

    Raises:
        UserError: --num-query is not a multiple of 10, or leaves no database.
    """
    # Slow to import, and the other datasets do not need it.
    from sklearn.datasets import load_digits as sklearn_digits

    size = options.image_size or IMAGE_SIZE
    digits = sklearn_digits()
    grey = torch.from_numpy(digits.images.astype(np.float32))[:, None] * (255 / 16)  # [1797, 1, 8, 8], 0..16 -> 0..255
    large = torch.nn.functional.interpolate(grey, size=(size, size), mode="bilinear", antialias=True)
    pixels = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
    names = [str(digit) for digit in digits.target_names]
    num_query = options.num_query or NUM_QUERY
    return split_in_memory("digits", pixels, digits.target, names, num_query, options.seed, size, shorter_side=size)
