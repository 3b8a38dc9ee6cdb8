"""Digits: the 1,797 handwritten digits of 8 × 8 grey pixels that are part of scikit-learn; no download.

300 images, 30 per class, drawn by the seed, are the queries; the other 1,497 are the database.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split, make_split
from data.options import Options
from data.pixels import MemoryPixels
from data.split import one_hot, per_class, stratified_split

IMAGE_SIZE = 64
NUM_QUERY = 300
NUM_CLASSES = 10


def load_digits(root: Path, options: Options) -> Split:
    """The digits as RGB, enlarged (bilinear) to S × S once; evaluation sees the whole image, without a central crop.

    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html; `root` is not used.

    Raises:
        UserError: --num-query is not a multiple of 10, or leaves no database.
    """
    # Slow to import, and the other datasets do not need it.
    from sklearn.datasets import load_digits as sklearn_digits

    image_size = options.image_size or IMAGE_SIZE
    digits = sklearn_digits()
    grey = torch.from_numpy(digits.images.astype(np.float32))[:, None] * (255 / 16)  # [1797, 1, 8, 8], 0..16 -> 0..255
    size = (image_size, image_size)
    large = torch.nn.functional.interpolate(grey, size=size, mode="bilinear", align_corners=False, antialias=True)
    pixels = large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    targets = digits.target.astype(np.int64)
    class_names = [str(digit) for digit in range(NUM_CLASSES)]
    counts = [per_class(options.num_query or NUM_QUERY, NUM_CLASSES, "digits")] * NUM_CLASSES
    query, database = stratified_split(targets, counts, options.seed, "digits", class_names)
    return make_split(
        "digits",
        MemoryPixels(pixels),
        one_hot(targets, NUM_CLASSES),
        query,
        database,
        image_size=image_size,
        shorter_side=image_size,
        class_names=class_names,
        multi_label=False,
    )
