"""The two halves of a split, as torch datasets over one source of pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from data.pixels import MemoryPixels, PixelSource
from data.split import one_hot, per_class, stratified_split
from data.windows import eval_windows, shorter_side_for
from utils.errors import UserError
from utils.seeding import derive_seed, generator


class ImageDataset(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """The `rows` (int64 [n]) of a pixel source with their `labels`, float32 multi-hot [n, C].

    ``dataset[i]`` is (image float32 [3, S, S], label float32 [C], i), as in evaluation: Resize(`shorter_side`),
    CenterCrop(S = `image_size`) and normalised as for ImageNet.
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
        """Resize and CenterCrop of the source's `rows`, int64 [N]: windows, int64 [N, 9]."""
        return eval_windows(self.source.sizes[rows], self.image_size, self.shorter_side)

    def subset(self, positions: np.ndarray) -> ImageDataset:
        """Only the images at `positions` (int64 [m]), with the same pixel source."""
        labels = self.labels[torch.from_numpy(positions)]
        return ImageDataset(self.source, self.rows[positions], labels, self.image_size, self.shorter_side)

    @property
    def paths(self) -> list[str] | None:
        """One file name per image; None where there are no files."""
        files = self.source.files
        return None if files is None else [files.names[row] for row in self.rows.tolist()]

    def pixels(self, indices: Iterable[int]) -> list[torch.Tensor]:
        """The stored images at `indices`, before any transform: uint8 [3, height, width] each."""
        return [self.source.image(int(self.rows[range(len(self))[int(index)]])) for index in indices]


@dataclass
class Split:
    """Queries, database and training pool of a dataset."""

    name: str
    query: ImageDataset
    database: ImageDataset
    class_names: list[str] | None  # one per label column
    validation: ImageDataset | None = None  # held out of the database to select the iteration
    separate: ImageDataset | None = None  # the training pool, where it is not the database; may share images with it

    @property
    def train(self) -> ImageDataset:
        """The training pool: the database, or `separate`."""
        return self.separate or self.database

    @property
    def num_classes(self) -> int:
        """C, the width of the labels."""
        return self.database.labels.shape[1]

    @property
    def multi_label(self) -> bool:
        """Whether some image has several labels."""
        return any(bool((half.labels.sum(1) > 1).any()) for half in (self.query, self.database))


def hold_out(split: Split, number: int, seed: int) -> Split:
    """The split with `number` database images, drawn by the seed, held out: they are neither trained on nor searched.

    Raises:
        UserError: fewer than two images would stay in the database.
    """
    size = len(split.database)
    if number > size - 2:
        raise UserError(f"--validate {number}: the database has only {size} images; give {size - 2} or fewer.")
    order = torch.randperm(size, generator=generator(seed, "validation")).numpy()
    held, kept = (split.database.subset(np.sort(part)) for part in (order[:number], order[number:]))
    separate = split.separate
    if separate is not None:  # it may share images with the database
        separate = separate.subset(np.flatnonzero(~np.isin(separate.rows, held.rows)))
    return replace(split, database=kept, validation=held, separate=separate)


def separate_training(split: Split, number: int, seed: int) -> Split:
    """The split with `number` database images, equally many per class, as a training pool outside the database.

    Raises:
        UserError: `number` is not a multiple of the number of classes, or a class has too few images.
    """
    targets = split.database.labels.argmax(1).numpy()
    counts = [per_class(number, split.num_classes, f"{split.name}, {number} training images")] * split.num_classes
    names = split.class_names or [str(label) for label in range(split.num_classes)]
    train, database = stratified_split(targets, counts, derive_seed(seed, "train"), split.name, names)
    return replace(split, database=split.database.subset(database), separate=split.database.subset(train))


def make_split(
    name: str,
    source: PixelSource,
    labels: torch.Tensor,
    rows: tuple[np.ndarray, ...],
    class_names: list[str] | None,
    image_size: int,
    shorter_side: int | None = None,
) -> Split:
    """A `Split` of one pixel source by its `rows`, int64; `labels` are float32 multi-hot [n, C].

    The rows are those of the queries, of the database and, where it is not the database, of the training pool.

    Images that cannot be read (size 0) are left out here, after the draw, so that no other image changes its side.

    Raises:
        UserError: no image of a part can be read.
    """
    parts = []
    for what, part in zip(("query", "database", "training"), rows, strict=False):
        good = part[source.sizes[part, 0] > 0]
        if not len(good):
            raise UserError(f"{name}: no {what} image can be read; replace the files.")
        side = shorter_side or shorter_side_for(image_size)
        parts.append(ImageDataset(source, good, labels[torch.from_numpy(good)], image_size, side))
    query, database, *training = parts
    return Split(name, query, database, class_names, separate=training[0] if training else None)


def split_in_memory(
    name: str,
    pixels: torch.Tensor,
    targets: np.ndarray,
    class_names: list[str],
    num_query: int,
    seed: int,
    image_size: int,
    shorter_side: int | None = None,
    rows: tuple[np.ndarray, np.ndarray] | None = None,
) -> Split:
    """A `Split` of `pixels`, uint8 [n, 3, h, w], of the classes `targets`, int64 [n]: equally many queries per class.

    `rows` are the query and database rows where they are given, not drawn.

    Raises:
        UserError: `num_query` is not a multiple of the number of classes, or leaves a class without database images.
    """
    if rows is None:
        counts = [per_class(num_query, len(class_names), name)] * len(class_names)
        rows = stratified_split(targets, counts, seed, name, class_names)
    labels = one_hot(targets, len(class_names))
    return make_split(name, MemoryPixels(pixels), labels, rows, class_names, image_size, shorter_side)
