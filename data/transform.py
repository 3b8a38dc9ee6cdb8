"""How images are cropped and resized: torchvision's transforms, drawn for a whole pass at once.

A *window* describes one image: a box of a stored image is resized (bilinear, antialiased) to an output size, and S × S
pixels of that are kept, mirrored or not. In RandomResizedCrop the box is the crop and the whole output is kept; in
Resize and CenterCrop the box is the whole image and the centre of the output is kept.

`make_image` makes one image on a CPU, `BatchResampler` a whole batch of images of one size; they differ by at most one
grey level of 255.

Source: https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.RandomResizedCrop.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag, interpolate

from data.windows import (
    FLIP,
    HEIGHT,
    LEFT,
    MOST_TIMES,
    OFFSET_X,
    OFFSET_Y,
    OUT_HEIGHT,
    OUT_WIDTH,
    PIXEL_BIAS,
    PIXEL_SCALE,
    TOP,
    WIDTH,
    resize_kept,
)

_TRIES = 10  # torchvision draws up to ten crops before it falls back to a central crop


@dataclass(frozen=True)
class RandomCrop:
    """Distribution of random crops."""

    scale: tuple[float, float]  # smallest and largest share of the area; uniform
    ratio: tuple[float, float]  # smallest and largest width / height; log-uniform
    flip: float  # probability of a mirror image


AUGMENTATIONS: dict[str, RandomCrop | None] = {
    "crop-flip": RandomCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5),  # torchvision's defaults
    "crop": RandomCrop(scale=(0.6, 1.0), ratio=(9 / 10, 10 / 9), flip=0.0),  # milder; a mirrored digit is not a digit
    "none": None,
}


def draw_windows(sizes: np.ndarray, image_size: int, crop: RandomCrop, generator: torch.Generator) -> np.ndarray:
    """Random crops, mirrored or not, of images of `sizes` (height, width), int [n, 2]: windows, int64 [n, 9].

    As torchvision's ``RandomResizedCrop.get_params``: up to ten tries of area × U(scale) and exp(U(log ratio)); the
    first that fits into the image is used, at a uniform place; if none fits, the central crop with the nearest allowed
    ratio. Each image uses the same number of random numbers, so that its size does not change the crops of others.
    """
    n = len(sizes)
    draws = torch.rand(n, 2 * _TRIES + 3, generator=generator, dtype=torch.float64).numpy()
    height, width = (sizes[:, axis].astype(np.int64) for axis in (0, 1))
    area = (height * width)[:, None] * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * draws[:, :_TRIES])
    log_low, log_high = np.log(crop.ratio[0]), np.log(crop.ratio[1])
    ratio = np.exp(log_low + (log_high - log_low) * draws[:, _TRIES : 2 * _TRIES])  # [n, tries]
    crop_width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    crop_height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (crop_width > 0) & (crop_width <= width[:, None]) & (crop_height > 0) & (crop_height <= height[:, None])
    first = fits.argmax(1)  # [n]; 0 also where none fits, which `fitted` tells apart
    rows = np.arange(n)
    fitted = fits[rows, first]

    image_ratio = width / height
    wide, tall = image_ratio > crop.ratio[1], image_ratio < crop.ratio[0]
    central_width = np.where(wide, np.rint(height * crop.ratio[1]).astype(np.int64), width)
    central_height = np.where(tall, np.rint(width / crop.ratio[0]).astype(np.int64), height)

    box_height = np.where(fitted, crop_height[rows, first], np.maximum(central_height, 1))
    box_width = np.where(fitted, crop_width[rows, first], np.maximum(central_width, 1))
    free_y, free_x = height - box_height, width - box_width
    table = np.empty((n, 9), dtype=np.int64)
    table[:, TOP] = np.where(fitted, np.floor(draws[:, -3] * (free_y + 1)), free_y // 2)
    table[:, LEFT] = np.where(fitted, np.floor(draws[:, -2] * (free_x + 1)), free_x // 2)
    table[:, HEIGHT], table[:, WIDTH] = box_height, box_width
    table[:, OUT_HEIGHT] = table[:, OUT_WIDTH] = image_size
    table[:, OFFSET_Y] = table[:, OFFSET_X] = 0
    table[:, FLIP] = draws[:, -1] < crop.flip
    return table


def make_image(rows: np.ndarray, window: np.ndarray, out: np.ndarray) -> None:
    """Crop, resize, mirror and normalise one image into `out`, float32 [3, S, S], by its `window`, int64 [9].

    `rows` are the stored image's in the window's box, uint8 [HEIGHT, w, 3]. Before normalisation the pixels equal those
    of torchvision's ``resized_crop`` and ``horizontal_flip``, or ``resize`` and ``center_crop``, of the same uint8
    tensor, on a CPU with AVX2 (elsewhere torchvision resizes floats). Of images that are much wider than high, or the
    other way round, they are Pillow's pixels, at most one grey level from those.
    """
    _, left, _, width, out_height, out_width, offset_y, offset_x, flip = window.tolist()
    # This runs in threads of the loader, where torch must not start further threads. It resizes 8-bit images with one
    # thread, but would copy a box that is not contiguous, and normalise, with several; numpy does both instead.
    box = np.ascontiguousarray(rows[:, left : left + width])
    size = out.shape[-1]
    if out_height * out_width > MOST_TIMES * size * size:
        kept = resize_kept(box, window, size).transpose(2, 0, 1)
    else:
        image = torch.from_numpy(box)[None].permute(0, 3, 1, 2)  # channels-last strides: torch's fastest case
        resized = interpolate(image, (out_height, out_width), mode="bilinear", antialias=True)[0].numpy()
        kept = resized[:, offset_y : offset_y + size, offset_x : offset_x + size]
    # Each step accesses memory in order or moves single bytes, which is faster than fewer steps that do neither.
    out[...] = np.ascontiguousarray(kept[:, :, ::-1] if flip else kept)
    out *= PIXEL_SCALE[:, None, None]
    out += PIXEL_BIAS[:, None, None]


def interpolation_taps(lines: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which stored positions each output is the weighted sum of.

    `lines` are (length, total, offset, mirrored), int64 [N, 4]: `length` positions, numbered from 0, are resized to
    `total` outputs, of which `count` from `offset` on are kept, in reverse order if mirrored is 1. The filter is the
    triangle of half width max(1, length / total), cut off at both ends; the weights sum to 1.

    Returns:
        Positions, int64 [N, count, taps], and weights, float32 [N, count, taps].
    """
    length, total, offset, mirrored = lines.unbind(1)
    scale = (length.double() / total.double())[:, None, None]
    support = scale.clamp(min=1.0)
    output = torch.where(mirrored[:, None] == 1, torch.arange(count).flip(0), torch.arange(count))
    center = (output + offset[:, None] + 0.5)[..., None] * scale  # [N, count, 1]
    taps = math.ceil(2 * float(support.max()))  # whole numbers in an open interval of 2 × support
    position = (center - support - 0.5).floor() + torch.arange(1, taps + 1)
    weight = (1 - (position + 0.5 - center).abs() / support).clamp(min=0)
    weight *= (position >= 0) & (position < length[:, None, None])
    position = position.clamp(min=0).minimum(length[:, None, None] - 1.0)
    return position.long(), (weight / weight.sum(2, keepdim=True)).float()


class BatchResampler:
    """Makes the batches of one pass, whose windows are `table`, int64 [n, 9], from stored images of one size.

    By matrix products for a GPU, or sums of rows for a CPU; neither rounds to whole grey levels.
    """

    def __init__(self, table: np.ndarray, image_size: int, device: torch.device | str = "cpu") -> None:
        self._size = image_size
        vertical = table[:, [HEIGHT, OUT_HEIGHT, OFFSET_Y, FLIP]] * (1, 1, 1, 0)  # never mirrored
        horizontal = table[:, [WIDTH, OUT_WIDTH, OFFSET_X, FLIP]]
        lines = np.concatenate([vertical, horizontal])  # [2 n, 4]
        # Many crops of small images differ only in their place: compute the taps once for each kind of line.
        number = np.ravel_multi_index(tuple(lines.T), tuple(lines.max(0) + 1))  # numbers are faster to sort than rows
        _, example, which = np.unique(number, return_index=True, return_inverse=True)
        taps = interpolation_taps(torch.from_numpy(lines[example]), image_size)
        self._positions, self._weights = (values.to(device) for values in taps)
        self._which = torch.from_numpy(which.reshape(2, -1)).to(device)  # [2, n]
        self._first = torch.from_numpy(table[:, [TOP, LEFT]].T.copy()).to(device)  # [2, n]
        self._scale, self._bias = (torch.from_numpy(row)[:, None, None].to(device) for row in (PIXEL_SCALE, PIXEL_BIAS))

    def by_matrices(self, pixels: torch.Tensor, batch: slice) -> torch.Tensor:
        """float32 [N, 3, S, S] from the stored images of the windows ``table[batch]``, uint8 [N, 3, h, w]."""
        normalised = pixels.float().mul_(self._scale).add_(self._bias)
        count, _, height, width = normalised.shape
        vertical, horizontal = (
            torch.zeros(count, self._size, stored, device=pixels.device).scatter_add_(2, *self._taps(axis, batch))
            for axis, stored in enumerate((height, width))
        )  # [N, S, h], [N, S, w]
        return vertical[:, None] @ (normalised @ horizontal.transpose(1, 2)[:, None])

    def by_sums(self, pixels: torch.Tensor, batch: slice, channels_last: bool = False) -> torch.Tensor:
        """As `by_matrices`, by weighted sums of a few columns, then of a few rows, for each output.

        The bits of an image depend neither on the memory format nor on its batch nor on the number of threads.
        """
        count, _, height, width = pixels.shape
        columns = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # [N, w, 3, h]
        columns.mul_(self._scale[:, 0]).add_(self._bias[:, 0])
        wide = self._sum(columns.view(count, 1, width, 3 * height), 1, batch).view(count, self._size, 3, height)
        if channels_last:
            rows = wide.permute(0, 3, 1, 2).reshape(count, 1, height, self._size * 3)
            return self._sum(rows, 0, batch).view(count, self._size, self._size, 3).permute(0, 3, 1, 2)
        return self._sum(wide.permute(0, 2, 3, 1), 0, batch)

    def _sum(self, lines: torch.Tensor, axis: int, batch: slice) -> torch.Tensor:
        """Sums of lines along one axis of the images: [N, C, stored, length] → [N, C, S, length]."""
        count, colours, stored, length = lines.shape
        positions, weights = self._taps(axis, batch)
        taps = positions.shape[2]
        first = torch.arange(0, count * colours * stored, stored).view(count, colours, 1)
        index = positions.flatten(1)[:, None] + first  # [N, C, S * taps], in a table of all lines
        weights = weights.flatten(1)[:, None].expand_as(index).reshape(-1, taps)
        table = lines.reshape(-1, length).contiguous()  # other strides would select a slower kernel
        out = embedding_bag(index.view(-1, taps), table, per_sample_weights=weights, mode="sum")
        return out.view(count, colours, self._size, length)

    def _taps(self, axis: int, batch: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions in the stored image and weights, int64 and float32 [N, S, taps]."""
        which = self._which[axis, batch]
        return self._positions[which] + self._first[axis, batch, None, None], self._weights[which]
