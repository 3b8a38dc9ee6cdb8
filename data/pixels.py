"""Sources of stored pixels, with one interface for files, a cache and memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.decode import BadImage, decode
from data.transform import make_image
from data.windows import HEIGHT, TOP
from utils.command import MOST_PIXELS


@dataclass(frozen=True)
class ImageFiles:
    """The files of n images: their names, which start from the folder `root`.

    They are stored with a shorter side of `shorter_side` pixels; smaller ones stay as they are. Images of more than
    `most_pixels` cannot be read.
    """

    root: Path
    names: Sequence[str]
    shorter_side: int
    most_pixels: int = MOST_PIXELS

    def decode(self, row: int) -> np.ndarray | str:
        """An image, uint8 [height, width, 3], or why it cannot be read."""
        try:
            return decode(self.root / self.names[row], self.shorter_side, most_pixels=self.most_pixels)
        except BadImage as error:
            return str(error)


class PixelSource(ABC):
    """n stored images, uint8 RGB. Reading is safe from several threads at once."""

    sizes: np.ndarray  # int32 [n, 2]: (height, width) of each stored image; (0, 0) where it cannot be read
    files: ImageFiles | None = None  # None for images that are in memory only

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def read(self, row: int, first: int, last: int) -> np.ndarray:
        """Rows ``first`` to ``last - 1`` of the image `row`: uint8 [last - first, width, 3]."""

    def image(self, row: int) -> torch.Tensor:
        """The whole stored image: uint8 [3, height, width]."""
        height = int(self.sizes[row, 0])
        return torch.from_numpy(self.read(row, 0, height).transpose(2, 0, 1).copy())

    def on(self, device: torch.device) -> torch.Tensor | None:
        """All stored images on `device`, where they stay from now on: uint8 [n, 3, h, w]; None: use `fill`."""
        return None

    def fill(self, rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
        """Make the images `rows` (int64 [N]) with the windows `table` (int64 [N, 9]): float32 `out` [N, 3, S, S]."""
        for row, window, target in zip(rows.tolist(), table, out, strict=True):
            top = int(window[TOP])
            make_image(self.read(row, top, top + int(window[HEIGHT])), window, target)


class MemoryPixels(PixelSource):
    """Images of one size in memory; also on a GPU, from the first batch for it on."""

    def __init__(self, pixels: torch.Tensor) -> None:
        """`pixels` is uint8 [n, 3, h, w]; it is kept in channels-last memory format."""
        count, channels, height, width = pixels.shape
        assert channels == 3 and pixels.dtype == torch.uint8
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.sizes = np.tile(np.array([[height, width]], dtype=np.int32), (count, 1))
        self._rows = self.pixels.permute(0, 2, 3, 1).numpy()  # [n, h, w, 3], a view
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def read(self, row: int, first: int, last: int) -> np.ndarray:
        return self._rows[row, first:last]

    def on(self, device: torch.device) -> torch.Tensor:
        """All stored images on `device`, where they stay from now on: uint8 [n, 3, h, w]."""
        if device.type == "cpu":
            return self.pixels
        if device not in self._on_device:
            # Matrix products are faster where each colour channel is contiguous.
            self._on_device[device] = self.pixels.to(device).contiguous()
        return self._on_device[device]

    def __reduce__(self) -> tuple[Callable[[torch.Tensor], MemoryPixels], tuple[torch.Tensor]]:
        return MemoryPixels, (self.pixels,)
