"""Batches: (images float32 [N, 3, S, S], labels float32 [N, C], index int64 [N]).

The content of a batch depends only on the key: order, crops and mirror images are drawn for the whole pass before the
first batch is made. Threads only share the work. An index is a position in the dataset. All are on the device, and no
copy waits for a GPU.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from data.image_dataset import ImageDataset
from data.transform import AUGMENTATIONS, BatchResampler, draw_windows
from utils.errors import UserError
from utils.seeding import generator

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Indices: TypeAlias = Sequence[int] | torch.Tensor | np.ndarray

_AHEAD = 2  # batches made ahead of the one in use
_PARTS = 4  # parts of a batch per thread
# From this side in pixels on, a CPU makes augmented batches of images in memory as a whole. Smaller images cost little
# compared with a training step, and made one at a time they have exactly the pixels of torchvision.
_WHOLE_FROM = 128


class _Buffers:
    """Memory for batches on the CPU, used again as soon as no tensor needs it: new memory costs many page faults."""

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


@dataclass(eq=False)
class BatchLoader:
    """An iterable of batches with a length. Each iteration gives the same batches. See `train_batches`.

    Attributes:
        index: positions in the dataset in the order of the batches, int64 [n].
        table: their windows, int64 [n, 9] (data/transform.py).
        cuts: batch i has the positions ``index[cuts[i] : cuts[i + 1]]``.
        whole: make each batch as a whole, with all torch threads, when it is needed; for images in memory only.
    """

    dataset: ImageDataset
    index: torch.Tensor
    table: np.ndarray
    cuts: Sequence[int]
    device: torch.device
    num_workers: int
    channels_last: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        self._rows = self.dataset.rows[self.index.numpy()]
        self._by_matrices = self.device.type != "cpu"

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def __iter__(self) -> Iterator[Batch]:
        stored = self.dataset.source.on(self.device) if self.whole or self._by_matrices else None
        if stored is not None:
            yield from self._whole_batches(stored)
            return
        size = self.dataset.image_size
        buffers = _Buffers((int(np.diff(self.cuts).max(initial=0)), 3, size, size))
        threads = self.num_workers or torch.get_num_threads()
        ahead = _AHEAD if self.num_workers else 0
        starts = deque(itertools.pairwise(self.cuts))
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

    def _whole_batches(self, stored: torch.Tensor) -> Iterator[Batch]:
        if not len(self.table):
            return
        resampler = BatchResampler(self.table, self.dataset.image_size, self.device)
        for low, high in itertools.pairwise(self.cuts):
            pixels = stored[self._send(torch.from_numpy(self._rows[low:high]))]
            if self._by_matrices:
                images = resampler.by_matrices(pixels, slice(low, high))
            else:
                images = resampler.by_sums(pixels, slice(low, high), self.channels_last)
            yield self._finish(images, self.index[low:high])

    def _start(
        self, low: int, high: int, buffers: _Buffers, executor: ThreadPoolExecutor, threads: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[Future[None]]]:
        rows, table = self._rows[low:high], self.table[low:high]
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
        return images, self.index[low:high], parts

    def _finish(self, images: torch.Tensor, index: torch.Tensor) -> Batch:
        images = images.to(self.device, non_blocking=True)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self._send(self.dataset.labels[index]), self._send(index.clone())

    def _send(self, values: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":  # pragma: no cover - from page-locked memory, or the copy waits for the GPU
            values = values.pin_memory()
        return values.to(self.device, non_blocking=True)


def _as_index(dataset: ImageDataset, indices: Indices) -> torch.Tensor:
    index = torch.as_tensor(indices, dtype=torch.int64).cpu().reshape(-1)
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(dataset)):
        raise IndexError(f"indices must be in 0..{len(dataset) - 1}")
    return index


def _cuts(count: int, batch_size: int) -> list[int]:
    if batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {batch_size}.")
    return [*range(0, count, batch_size), count] if count else [0]


def smallest_batch(count: int, batch_size: int, parts: int = 1) -> int:
    """Images in the smallest batch of a pass of `train_batches` over `count` images, in all its `parts` shares."""
    if parts == 1:
        return count % batch_size or batch_size
    batches = math.ceil(math.ceil(count / parts) / batch_size)  # they are of about equal size
    return count // parts // batches


def train_batches(
    dataset: ImageDataset,
    indices: Indices,
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
        indices: positions in the dataset, int64 [n].
        key: of `utils.seeding.generator`. The same key gives exactly the same batches.
        augment: one of `AUGMENTATIONS`; "none": as in evaluation.
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
    cuts = _cuts(len(range(0, len(index), parts)), batch_size)  # of the largest share
    index, table = index[part::parts], table[part::parts]
    if parts > 1:
        cuts = np.linspace(0, len(index), len(cuts)).astype(int).tolist()
    whole = crop is not None and dataset.image_size >= _WHOLE_FROM
    return BatchLoader(dataset, index, table, cuts, torch.device(device), num_workers, channels_last, whole)


def eval_batches(
    dataset: ImageDataset,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    indices: Indices | None = None,
    num_workers: int = 0,
) -> BatchLoader:
    """``dataset[indices]``, or all of it, in order: Resize(256 S / 224) and CenterCrop(S); see `train_batches`."""
    index = _as_index(dataset, torch.arange(len(dataset)) if indices is None else indices)
    table = dataset.eval_windows(dataset.rows[index.numpy()])
    return BatchLoader(dataset, index, table, _cuts(len(index), batch_size), torch.device(device), num_workers)
