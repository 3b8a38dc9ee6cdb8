"""Evaluation's Resize and CenterCrop without torch, and the columns of the windows of `data.transform`."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.sparse import csr_array

# Mean and standard deviation of RGB in [0, 1] that torchvision uses for networks trained on ImageNet.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# value * PIXEL_SCALE + PIXEL_BIAS, with value in 0..255, is ToTensor and Normalize in one step.
PIXEL_SCALE = np.array([1 / (255 * std) for std in IMAGENET_STD], dtype=np.float32)
PIXEL_BIAS = np.array([-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], dtype=np.float32)

# The columns of a window table.
TOP, LEFT, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, OFFSET_Y, OFFSET_X, FLIP = range(9)

# From this many times the pixels that are kept on, as for images about 12 times as wide as high, only those are made.
MOST_TIMES = 16


def shorter_side_for(image_size: int) -> int:
    """Shorter side in pixels before the central crop: 256 for 224, and in the same proportion for other sizes."""
    return round(256 * image_size / 224)


def resized_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """(height, width) after torchvision's ``Resize(shorter_side)``."""
    height, width = _resized_sizes(np.array([[height, width]]), shorter_side)[0].tolist()
    return height, width


def _resized_sizes(sizes: np.ndarray, shorter_side: int) -> np.ndarray:
    """`resized_size` of n images, int [n, 2] → int64 [n, 2]."""
    exact = shorter_side * sizes.astype(np.int64) / sizes.min(axis=1, keepdims=True)
    return exact.astype(np.int64)


def eval_windows(sizes: np.ndarray, image_size: int, shorter_side: int) -> np.ndarray:
    """``Resize(shorter_side)`` and ``CenterCrop(image_size)`` of images of these sizes: windows, int64 [n, 9]."""
    table = np.zeros((len(sizes), 9), dtype=np.int64)
    table[:, HEIGHT], table[:, WIDTH] = sizes[:, 0], sizes[:, 1]
    resized = _resized_sizes(sizes, shorter_side)
    table[:, OUT_HEIGHT : OUT_WIDTH + 1] = resized
    table[:, OFFSET_Y : OFFSET_X + 1] = np.rint((resized - image_size) / 2)
    return table


def eval_image(pixels: np.ndarray, image_size: int, shorter_side: int) -> np.ndarray:
    """What evaluation shows the network of a stored image, before normalisation: uint8 [h, w, 3] → uint8 [S, S, 3].

    The same levels as of `data.transform.make_image` with `eval_windows` on a CPU with AVX2: there torch resizes 8-bit
    images with weights that are whole numbers below 2^15, first along the rows, and rounds after each direction
    (https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/cpu/UpSampleKernel.cpp).
    """
    window = eval_windows(np.array([pixels.shape[:2]]), image_size, shorter_side)[0]
    out_height, out_width, offset_y, offset_x = window[OUT_HEIGHT : OFFSET_X + 1].tolist()
    if out_height * out_width > MOST_TIMES * image_size * image_size:
        return resize_kept(pixels, window, image_size)
    columns = slice(offset_x, offset_x + image_size)
    rows = slice(offset_y, offset_y + image_size)
    if pixels.shape[1] == out_width:
        pixels = pixels[:, columns]
    else:
        pixels = _resized_rows(pixels.transpose(1, 0, 2), out_width, columns).transpose(1, 0, 2)
    return pixels[rows] if pixels.shape[0] == out_height else _resized_rows(pixels, out_height, rows)


def _resized_rows(pixels: np.ndarray, count: int, kept: slice) -> np.ndarray:
    """The rows `kept` of uint8 [n, m, 3], resized (bilinear, antialiased) to `count` rows."""
    length = len(pixels)
    scale = length / count
    support = max(scale, 1.0)
    center = scale * (np.arange(count) + 0.5)[:, None]
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), length)
    position = first + np.arange((end - first).max())
    weights = np.where(position < end, np.maximum(1 - np.abs(position - center + 0.5) / support, 0), 0)
    weights /= weights.cumsum(1)[:, -1:]  # one after the other, as torch adds them
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    whole = np.floor(weights[kept] * 2**bits + 0.5).astype(np.int32)
    start, stop = first[kept].min(), end[kept].max()
    places = np.minimum(position[kept], stop - 1) - start  # the weights beyond are 0
    ends = np.arange(len(whole) + 1) * whole.shape[1]
    matrix = csr_array((whole.ravel(), places.ravel(), ends), shape=(len(whole), stop - start))
    sums = matrix @ np.ascontiguousarray(pixels[start:stop], np.int32).reshape(stop - start, -1)  # below 2^31
    sums += 1 << (bits - 1)
    sums >>= bits
    return sums.clip(0, 255).astype(np.uint8).reshape(-1, *pixels.shape[1:])


def resize_kept(box: np.ndarray, window: np.ndarray, size: int) -> np.ndarray:
    """The S × S pixels that are kept, uint8 [S, S, 3], resized (bilinear, antialiased) from `box`, uint8 [h, w, 3].

    Torch can only resize the whole of it, which takes gigabytes for an image of 20,000 × 1 pixels.
    """
    scale_y, scale_x = (window[[HEIGHT, WIDTH]] / window[[OUT_HEIGHT, OUT_WIDTH]]).tolist()
    top, left = (window[[OFFSET_Y, OFFSET_X]] * (scale_y, scale_x)).tolist()
    height, width, _ = box.shape
    part = (left, top, min(left + size * scale_x, width), min(top + size * scale_y, height))
    return np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.BILINEAR, box=part))
