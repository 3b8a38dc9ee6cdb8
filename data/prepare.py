"""From an image file to the pixels that evaluation shows a network. Needs no torch."""

from __future__ import annotations

import os
from typing import IO

import numpy as np

from data.decode import FORMATS, BadImage, decode
from data.windows import eval_image
from utils.command import MOST_PIXELS


def prepare_image(
    path: str | os.PathLike[str] | IO[bytes],
    image_size: int,
    shorter_side: int,
    most_pixels: int = MOST_PIXELS,
    formats: tuple[str, ...] = FORMATS,
) -> np.ndarray | BadImage:
    """The pixels before normalisation, uint8 [S, S, 3] (`eval_image`); or why the file cannot be read (`decode`)."""
    try:
        pixels = decode(path, shorter_side, formats=formats, most_pixels=most_pixels)
    except BadImage as error:
        return error
    return eval_image(pixels, image_size, shorter_side)
