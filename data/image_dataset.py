"""The two halves of a split, as torch datasets over one source of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from data.pixels import PixelSource
from data.transform import eval_windows, shorter_side_for
from utils.errors import UserError
from utils.seeding import generator


class ImageDataset(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Some rows of a pixel source with their labels.

    ``dataset[i]`` is (image float32 [3, S, S], label float32 [C], i). The image is resized, cropped in the centre and
    normalised with the mean and standard deviation of ImageNet.

    Attributes:
        labels: float32 multi-hot [n, C].
        image_size: S in pixels.
        shorter_side: shorter side in pixels after Resize, before the central crop.
        source, rows: the pixel source and the rows of it that belong to this dataset (int64 [n]).
    """

    def __init__(
        self, source: PixelSource, rows: np.ndarray, labels: torch.Tensor, image_size: int, shorter_side: int
    ) -> None:
        assert len(rows) == len(labels)
        self.source = source
        self.rows = np.asarray(rows, dtype=np.int64)
        self.labels = labels
        self.image_size = image_size
        self.shorter_side = shorter_side

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        position = range(len(self))[index]  # negative positions and IndexError, as in a list
        rows = self.rows[position : position + 1]
        image = torch.empty(1, 3, self.image_size, self.image_size, dtype=torch.float32)
        self.source.fill(rows, self.eval_windows(rows), image.numpy())
        return image[0], self.labels[position], position

    def eval_windows(self, rows: np.ndarray) -> np.ndarray:
        """Resize and CenterCrop of the source's `rows`: windows, int64 [N, 9]."""
        return eval_windows(self.source.sizes[rows], self.image_size, self.shorter_side)

    def subset(self, positions: np.ndarray) -> ImageDataset:
        """Only the images at `positions` (int64 [m]), with the same pixel source."""
        labels = self.labels[torch.from_numpy(positions)]
        return ImageDataset(self.source, self.rows[positions], labels, self.image_size, self.shorter_side)

    @property
    def paths(self) -> list[str] | None:
        """One file name per image; None where there are no files."""
        names = self.source.names
        return None if names is None else [names[row] for row in self.rows.tolist()]

    def pixels(self, indices: Iterable[int]) -> list[torch.Tensor]:
        """The stored pixels of some images, before any transform: a list of uint8 [3, height, width]."""
        return [self.source.image(int(self.rows[range(len(self))[int(index)]])) for index in indices]


@dataclass
class Split:
    """Queries and database of one dataset.

    Attributes:
        query, database: the two halves; the database is also the training pool.
        num_classes: C, the width of the labels.
        class_names: one name per label column; None where they have no names.
        multi_label: whether an image may have several labels.
        name: the dataset's name, as given to `load_data`.
        validation: images held out of the database, which select the iteration (`hold_out`), or None.
    """

    query: ImageDataset
    database: ImageDataset
    num_classes: int
    class_names: list[str] | None
    multi_label: bool
    name: str
    validation: ImageDataset | None = None


def hold_out(split: Split, number: int, seed: int) -> Split:
    """The split with `number` database images, drawn by the seed, held out: they are neither trained on nor searched.

    Raises:
        UserError: fewer than two images would stay in the database.
    """
    size = len(split.database)
    if number > size - 2:
        raise UserError(f"--validate {number}: the database has only {size} images; give {size - 2} or fewer.")
    order = torch.randperm(size, generator=generator(seed, "validation")).numpy()
    return replace(
        split,
        database=split.database.subset(np.sort(order[number:])),
        validation=split.database.subset(np.sort(order[:number])),
    )


def make_split(
    name: str,
    source: PixelSource,
    labels: torch.Tensor,
    query: np.ndarray,
    database: np.ndarray,
    *,
    image_size: int,
    shorter_side: int | None = None,
    class_names: list[str] | None,
    multi_label: bool,
) -> Split:
    """A `Split` of one pixel source.

    Images that cannot be read (size 0) are left out here, after the draw, so that no other image changes its side.

    Args:
        name: of the dataset.
        source: n images.
        labels: float32 multi-hot [n, C].
        query, database: rows of the source, int64.
        image_size, class_names, multi_label: see `ImageDataset` and `Split`.
        shorter_side: see `ImageDataset`; None: `shorter_side_for(image_size)`.

    Raises:
        UserError: no image of a half can be read.
    """
    shorter_side = shorter_side or shorter_side_for(image_size)
    halves = []
    for what, rows in (("query", query), ("database", database)):
        good = rows[source.sizes[rows, 0] > 0]
        if not len(good):
            raise UserError(f"{name}: no {what} image can be read; replace the files.")
        halves.append(ImageDataset(source, good, labels[torch.from_numpy(good)], image_size, shorter_side))
    return Split(halves[0], halves[1], labels.shape[1], class_names, multi_label, name)
