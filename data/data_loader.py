"""Batches: (images float32 [N, 3, S, S], labels float32 [N, C], index int64 [N]).

The content of a batch depends only on the key: order, crops and mirror images are drawn for the whole pass before the
first batch is made. Threads only share the work. An index is a position in the dataset; it stays on the CPU, where it
can index a tensor on any device.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch

from data.image_dataset import ImageDataset
from data.pixels import MemoryPixels
from data.transform import AUGMENTATIONS, BatchResampler, draw_windows
from utils.errors import UserError
from utils.seeding import generator

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_AHEAD = 2  # batches made ahead of the one in use
_PARTS = 4  # parts of a batch per thread
# From this side in pixels on, a CPU makes augmented batches of images in memory as a whole. Smaller images cost little
# compared with a training step, and made one at a time they have exactly the pixels of torchvision.
_WHOLE_FROM = 128


class _Buffers:
    """Memory for batches on the CPU, used again as soon as no tensor needs it.

    New memory costs a page fault per 4 KiB, which for a batch of 64 takes a large part of the time.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._free: deque[np.ndarray] = deque()

    def take(self, count: int) -> torch.Tensor:
        """float32 [count, ...], not initialised."""
        memory = self._free.pop() if self._free else np.empty(self._shape, dtype=np.float32)
        view = memory[:count]
        # The storage of the tensor keeps `view` alive; when its last tensor is deleted, the memory is free again.
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view)


class BatchLoader:
    """An iterable of batches with a length. Each iteration gives the same batches."""

    def __init__(
        self,
        dataset: ImageDataset,
        index: torch.Tensor,
        table: np.ndarray,
        batch_size: int,
        device: torch.device | str,
        num_workers: int = 0,
        channels_last: bool = False,
        num_batches: int | None = None,
        whole: bool = False,
    ) -> None:
        """See `train_batches` for the other arguments.

        Args:
            dataset: the images.
            index: positions in the dataset in the order of the batches, int64 [n].
            table: their windows, int64 [n, 9] (data/transform.py).
            num_batches: make this many batches of nearly equal sizes, instead of full ones and a remainder.
            whole: make each batch as a whole, with all torch threads, when it is needed; for images in memory only.

        Raises:
            UserError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise UserError(f"--batch-size must be 1 or more, not {batch_size}.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.num_workers = num_workers
        self.channels_last = channels_last
        self._index = index
        self._table = table
        self._whole = whole
        self._by_matrices = self.device.type != "cpu"
        self._cuts = [*range(0, len(index), batch_size), len(index)] if len(index) else [0]
        if num_batches is not None:
            self._cuts = np.linspace(0, len(index), num_batches + 1).astype(int).tolist()

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self.dataset.source, MemoryPixels) and (self._whole or self._by_matrices):
            yield from self._whole_batches(self.dataset.source)
            return
        size = self.dataset.image_size
        buffers = _Buffers((min(self.batch_size, len(self._index)), 3, size, size))
        threads = self.num_workers or torch.get_num_threads()
        ahead = _AHEAD if self.num_workers else 0
        starts = deque(itertools.pairwise(self._cuts))
        pending: deque[tuple[torch.Tensor, torch.Tensor, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="batch") as executor:
            try:
                while starts or pending:
                    while starts and len(pending) <= ahead:
                        pending.append(self._start(*starts.popleft(), buffers, executor, threads))
                    images, index, parts = pending.popleft()
                    for part in parts:
                        part.result()
                    batch = self._finish(images, index)
                    del images
                    yield batch
                    del batch  # only the caller's tensors decide when the memory is free
            finally:
                executor.shutdown(wait=True, cancel_futures=True)

    def _whole_batches(self, source: MemoryPixels) -> Iterator[Batch]:
        if not len(self._table):
            return
        stored = source.on(self.device)
        resampler = BatchResampler(self._table, self.dataset.image_size, self.device)
        for low, high in itertools.pairwise(self._cuts):
            index, rows, _ = self._part(low, high)
            pixels = stored[torch.from_numpy(rows).to(self.device)]
            if self._by_matrices:
                images = resampler.by_matrices(pixels, slice(low, high))
            else:
                images = resampler.by_sums(pixels, slice(low, high), self.channels_last)
            yield self._finish(images, index)

    def _part(self, low: int, high: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        index = self._index[low:high]
        return index, self.dataset.rows[index.numpy()], self._table[low:high]

    def _start(
        self, low: int, high: int, buffers: _Buffers, executor: ThreadPoolExecutor, threads: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[Future[None]]]:
        index, rows, table = self._part(low, high)
        if self.device.type == "cuda":  # pragma: no cover - page-locked memory, which torch keeps and reuses by itself
            size = self.dataset.image_size
            images = torch.empty(len(rows), 3, size, size, pin_memory=True)
        else:
            images = buffers.take(len(rows))
        out = images.numpy()
        # Several parts per thread: if the system delays one thread, the others take over its share.
        cuts = np.linspace(0, len(rows), min(_PARTS * threads, len(rows)) + 1).astype(int)
        parts = [
            executor.submit(self.dataset.source.fill, rows[low:high], table[low:high], out[low:high])
            for low, high in itertools.pairwise(cuts)
        ]
        return images, index, parts

    def _finish(self, images: torch.Tensor, index: torch.Tensor) -> Batch:
        labels = self.dataset.labels[index].to(self.device, non_blocking=True)
        images = images.to(self.device, non_blocking=True)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels, index.clone()


def _as_index(dataset: ImageDataset, indices: Sequence[int] | torch.Tensor | np.ndarray | None) -> torch.Tensor:
    if indices is None:
        return torch.arange(len(dataset))
    index = torch.as_tensor(indices, dtype=torch.int64).cpu().reshape(-1)
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(dataset)):
        raise IndexError(f"indices must be in 0..{len(dataset) - 1}")
    return index


def train_batches(
    dataset: ImageDataset,
    indices: Sequence[int] | torch.Tensor | np.ndarray,
    *,
    batch_size: int,
    key: Sequence[int | str],
    augment: str,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    channels_last: bool = False,
    share: tuple[int, int] = (0, 1),
) -> BatchLoader:
    """One pass over ``dataset[indices]``, shuffled and augmented; the last, smaller batch is kept.

    Args:
        dataset: the images.
        indices: positions in the dataset, int64 [n].
        batch_size: images per batch.
        key: of `utils.seeding.generator`. The same key gives exactly the same batches.
        augment: "crop-flip": RandomResizedCrop(S) and mirroring with probability 1/2, with torchvision's defaults;
            "crop": 60 to 100 % of the area, width / height 9/10 to 10/9, never mirrored; "none": as in evaluation.
        device: of images and labels.
        num_workers: threads that make batches ahead; 0: a batch is made when it is needed, with all torch threads, and
            so are augmented images in memory of 128 pixels or more with any number.
        channels_last: images in torch.channels_last memory format.
        share: (i, n) gives every n-th image from the i-th on, in the same number of batches as every other share.

    Raises:
        UserError: an unknown augmentation or a batch size below 1.
        IndexError: a position is outside of the dataset.
    """
    if augment not in AUGMENTATIONS:
        raise UserError(f"--augment must be one of {', '.join(AUGMENTATIONS)}, not {augment!r}.")
    index = _as_index(dataset, indices)
    random = generator(*key)
    index = index[torch.randperm(len(index), generator=random)]
    rows = dataset.rows[index.numpy()]
    crop = AUGMENTATIONS[augment]
    if crop is None:
        table = dataset.eval_windows(rows)
    else:
        table = draw_windows(dataset.source.sizes[rows], dataset.image_size, crop, random)
    part, parts = share
    num_batches = None
    if parts > 1:
        num_batches = -(-len(range(0, len(index), parts)) // batch_size)  # of the largest share
        index, table = index[part::parts], table[part::parts]
    return BatchLoader(
        dataset,
        index,
        table,
        batch_size,
        device,
        num_workers,
        channels_last,
        num_batches,
        whole=crop is not None and dataset.image_size >= _WHOLE_FROM,
    )


def eval_batches(
    dataset: ImageDataset,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    indices: Sequence[int] | torch.Tensor | np.ndarray | None = None,
    num_workers: int = 0,
    channels_last: bool = False,
) -> BatchLoader:
    """``dataset[indices]``, or all of it, in order: Resize(256 S / 224) and CenterCrop(S); see `train_batches`."""
    index = _as_index(dataset, indices)
    table = dataset.eval_windows(dataset.rows[index.numpy()])
    return BatchLoader(dataset, index, table, batch_size, device, num_workers, channels_last)
