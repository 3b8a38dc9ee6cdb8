"""Cut, resize, mirror and normalise on the CPU: one compiled pass an image, outside Python's interpreter lock.

First every needed row is resized across, then the rows are blended down straight into the output, with ToTensor and
Normalize folded into the weights. The filter is the one of transform.interpolation_matrix, in float32 throughout:
unlike Pillow, nothing is rounded to whole grey levels on the way.

Stored images are uint8 [height, 3, width]: whole rows are contiguous (a crop's rows are one read of a file), and so
is each colour within a row (what the compiler needs to use vector instructions).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from data.transform import HEIGHT, OFFSET_Y, OUT_HEIGHT, PIXEL_BIAS, PIXEL_SCALE, TOP

try:
    import numba
except ImportError:  # pragma: no cover - numba is optional, transform.resample_by_matrices does the same
    numba = None  # type: ignore[assignment]

COMPILED = numba is not None


def _compiled(function: Any) -> Any:
    if numba is None:  # pragma: no cover
        return function
    # Contraction to fused multiply-add changes the last bit against other machines, never from run to run.
    try:
        return numba.njit(nogil=True, cache=True, fastmath={"contract"})(function)
    except RuntimeError:  # pragma: no cover - no folder in which compiled code may be kept
        return numba.njit(nogil=True, fastmath={"contract"})(function)


@_compiled
def _fill_weights(length, total, offset, count, flip, start, weights):  # pragma: no cover
    """Fill start [count] and weights [taps, count]; positions count from the start of the box."""
    scale = length / total
    support = max(scale, 1.0)
    taps = weights.shape[0]
    for x in range(count):
        output = (count - 1 - x if flip else x) + offset
        center = (output + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), length)
        norm = 0.0
        for t in range(high - low):
            norm += max(0.0, 1.0 - abs(low + t + 0.5 - center) / support)
        start[x] = low
        for t in range(taps):
            inside = t < high - low
            weights[t, x] = max(0.0, 1.0 - abs(low + t + 0.5 - center) / support) / norm if inside else 0.0


@_compiled
def _resample_one(pixels, first_row, window, scale, bias, out):  # pragma: no cover
    """pixels uint8 [rows, 3, w] (rows first_row.. of the image), window int64 [9] -> out float32 [3, S, S]."""
    top, left, height, width, out_height, out_width, offset_y, offset_x, flip = window
    size = out.shape[1]
    taps_x = 2 * math.ceil(max(width / out_width, 1.0)) + 1
    taps_y = 2 * math.ceil(max(height / out_height, 1.0)) + 1
    start_x = np.empty(size, np.int32)
    start_y = np.empty(size, np.int32)
    weights_x = np.empty((taps_x, size), np.float32)
    weights_y = np.empty((taps_y, size), np.float32)
    _fill_weights(width, out_width, offset_x, size, flip != 0, start_x, weights_x)
    _fill_weights(height, out_height, offset_y, size, False, start_y, weights_y)
    while taps_x > 1 and not weights_x[taps_x - 1].any():  # room for one tap too many was left above
        taps_x -= 1
    while taps_y > 1 and not weights_y[taps_y - 1].any():
        taps_y -= 1
    column_low = start_x.min()
    column_high = min(start_x.max() + taps_x, width)
    row_low = start_y.min()
    row_high = min(start_y.max() + taps_y, height)
    line = np.zeros(column_high - column_low + taps_x, np.float32)  # zeros behind: taps of weight 0 may reach there
    for x in range(size):
        start_x[x] -= column_low
    across = np.empty((row_high - row_low, 3, size), np.float32)
    for row in range(row_low, row_high):
        for c in range(3):
            source = pixels[top + row - first_row, c, left + column_low : left + column_high]
            for x in range(source.shape[0]):
                line[x] = source[x]
            target = across[row - row_low, c]
            factor = scale[c]
            if taps_x == 2:
                for x in range(size):
                    s = start_x[x]
                    target[x] = (weights_x[0, x] * line[s] + weights_x[1, x] * line[s + 1]) * factor
            else:
                for x in range(size):
                    target[x] = weights_x[0, x] * line[start_x[x]]
                for t in range(1, taps_x):
                    for x in range(size):
                        target[x] += weights_x[t, x] * line[start_x[x] + t]
                for x in range(size):
                    target[x] *= factor
    for c in range(3):
        for y in range(size):
            target = out[c, y]
            row = start_y[y] - row_low
            taps = taps_y
            while taps > 1 and weights_y[taps - 1, y] == 0.0:
                taps -= 1
            w0 = weights_y[0, y]
            upper = across[row, c]
            if taps == 1:
                for x in range(size):
                    target[x] = w0 * upper[x] + bias[c]
            else:
                w1 = weights_y[1, y]
                lower = across[row + 1, c]
                for x in range(size):
                    target[x] = w0 * upper[x] + w1 * lower[x] + bias[c]
                for t in range(2, taps):
                    w = weights_y[t, y]
                    lower = across[row + t, c]
                    for x in range(size):
                        target[x] += w * lower[x]


@_compiled
def _resample_many(pixels, rows, table, scale, bias, out):  # pragma: no cover
    """The same for images `rows` of one array, uint8 [n, h, 3, w]."""
    for i in range(rows.shape[0]):
        _resample_one(pixels[rows[i]], 0, table[i], scale, bias, out[i])


def resample_one(pixels: np.ndarray, first_row: int, window: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (float32 [3, S, S]) from rows `first_row`.. of one image (uint8 [rows, 3, w]) by one window [9]."""
    _resample_one(pixels, first_row, window, PIXEL_SCALE, PIXEL_BIAS, out)


def resample_many(pixels: np.ndarray, rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (float32 [N, 3, S, S]) from images `rows` (int64 [N]) of uint8 [n, h, 3, w] by N windows."""
    _resample_many(pixels, rows, table, PIXEL_SCALE, PIXEL_BIAS, out)


def rows_needed(table: np.ndarray, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The stored rows ``[first, last)`` that each window touches: two int64 [N]."""
    scale = table[:, HEIGHT] / table[:, OUT_HEIGHT]
    support = np.maximum(scale, 1.0)
    low = (table[:, OFFSET_Y] + 0.5) * scale - support + 0.5
    high = (table[:, OFFSET_Y] + image_size - 0.5) * scale + support + 0.5
    first = np.clip(np.floor(low), 0, None).astype(np.int64)
    # The kernel takes as many taps for the last output as for the widest one: leave room for them.
    last = np.minimum(np.ceil(high).astype(np.int64) + 1, table[:, HEIGHT])
    return table[:, TOP] + first, table[:, TOP] + last
