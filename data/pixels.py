"""Where stored pixels come from. Every source answers the same few questions, so that nothing else asks which it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data import resample
from data.transform import resample_by_matrices


class PixelSource(ABC):
    """n stored images, uint8 RGB. Reading is safe from several threads at once."""

    sizes: np.ndarray  # int32 [n, 2]: (height, width) of each stored image; (0, 0) where it cannot be read
    names: Sequence[str] | None = None  # a file name an image, where there are files
    root: Path | None = None  # the folder that the names start from

    def __len__(self) -> int:
        return len(self.sizes)

    @abstractmethod
    def read(self, row: int, first: int, last: int) -> np.ndarray:
        """Rows ``first..last`` of image `row`: uint8 [last - first, 3, width]."""

    def image(self, row: int) -> torch.Tensor:
        """The whole stored image: uint8 [3, height, width]."""
        height = int(self.sizes[row, 0])
        return torch.from_numpy(np.ascontiguousarray(self.read(row, 0, height).transpose(1, 0, 2)))

    def fill(self, rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
        """Make the images `rows` (int64 [N]) by their windows (int64 [N, 9]) into ``out``, float32 [N, 3, S, S]."""
        if not resample.COMPILED:
            for i, row in enumerate(rows.tolist()):
                image = self.image(row)[None]
                out[i] = resample_by_matrices(image, table[i : i + 1], out.shape[-1])[0].numpy()
            return
        first, last = resample.rows_needed(table, out.shape[-1])
        for i, row in enumerate(rows.tolist()):
            low = int(first[i])
            resample.resample_one(self.read(row, low, int(last[i])), low, table[i], out[i])


class MemoryPixels(PixelSource):
    """A whole collection of images of one size in memory, on a GPU too once a batch has been asked for there."""

    def __init__(self, pixels: torch.Tensor) -> None:
        """`pixels` is uint8 [n, 3, h, w]."""
        count, channels, height, width = pixels.shape
        assert channels == 3 and pixels.dtype == torch.uint8
        self.pixels = pixels
        self.sizes = np.tile(np.array([[height, width]], dtype=np.int32), (count, 1))
        self._rows_first = pixels.permute(0, 2, 1, 3).numpy()  # [n, h, 3, w], a view
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def read(self, row: int, first: int, last: int) -> np.ndarray:
        return self._rows_first[row, first:last]

    def image(self, row: int) -> torch.Tensor:
        return self.pixels[row].clone()

    def fill(self, rows: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
        if resample.COMPILED:
            resample.resample_many(self._rows_first, rows, table, out)
        else:
            out[...] = self.make_on(torch.device("cpu"), rows, table, out.shape[-1]).numpy()

    def make_on(self, device: torch.device, rows: np.ndarray, table: np.ndarray, image_size: int) -> torch.Tensor:
        """The batch made on `device`, where the whole collection is kept from now on: float32 [N, 3, S, S]."""
        if device not in self._on_device:
            self._on_device[device] = self.pixels.to(device)
        stored = self._on_device[device]
        return resample_by_matrices(stored[torch.from_numpy(rows).to(device)], table, image_size)

    def __getstate__(self) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels}

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__init__(state["pixels"])  # type: ignore[misc]
