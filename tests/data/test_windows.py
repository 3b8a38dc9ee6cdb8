"""Evaluation's Resize and CenterCrop without torch."""

import numpy as np
import pytest
import torch

from data.transform import make_image
from data.windows import PIXEL_BIAS, PIXEL_SCALE, eval_image, eval_windows
from tests.image_trees import photo

with_avx = pytest.mark.skipif(
    "AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torch resizes 8 bits by way of floats"
)


def by_torch(pixels: np.ndarray, image_size: int, shorter_side: int) -> np.ndarray:
    """float32 [3, S, S]: what the loader gives the network."""
    out = np.empty((3, image_size, image_size), dtype=np.float32)
    make_image(pixels, eval_windows(np.array([pixels.shape[:2]]), image_size, shorter_side)[0], out)
    return out


def normalised(pixels: np.ndarray) -> np.ndarray:
    image = pixels.transpose(2, 0, 1).astype(np.float32)
    image *= PIXEL_SCALE[:, None, None]
    image += PIXEL_BIAS[:, None, None]
    return image


@with_avx
@pytest.mark.parametrize(
    ("size", "image_size", "shorter_side"),
    [
        ((341, 256), 224, 256),  # stored as it is shown: nothing is resized
        ((32, 32), 224, 256),
        ((8, 8), 64, 64),
        ((64, 64), 64, 64),
        ((200, 255), 224, 256),
        ((90, 40), 32, 37),
        ((100, 75), 224, 256),
        ((1, 1), 32, 37),
        ((7, 60), 32, 37),
        ((60, 3), 32, 37),  # so thin that only the kept part is made
        ((300, 300), 32, 37),  # larger than it is ever stored
        ((255, 1000), 224, 256),
    ],
)
def test_the_levels_are_those_of_the_loader(size, image_size, shorter_side):
    smooth = np.array(photo(1, *size))
    noise = np.random.default_rng(2).integers(0, 256, smooth.shape, dtype=np.uint8)
    extreme = np.where(noise > 127, 255, 0).astype(np.uint8)
    for pixels in (smooth, noise, extreme):
        shown = eval_image(pixels, image_size, shorter_side)
        assert shown.shape == (image_size, image_size, 3) and shown.dtype == np.uint8
        assert np.array_equal(normalised(shown), by_torch(pixels, image_size, shorter_side))
