"""One file with all decoded images of a dataset at their stored size, so that training reads no JPEG.

The file has the pixels of one image after the other, uint8 [height, width, 3], and behind them what describes them, by
`numpy.savez`. It is renamed when it is complete, so a reader sees the old file, the new one or none. Reading is `pread`
of the rows that a crop needs: the pages belong to the file cache of the system, not to the process.

The signature of an image is a hash of its name, of the size and time of modification of its file, of the stored shorter
side and of the version of the rules of decoding. A cache with other signatures than the dataset's is built again; known
images are copied.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.decode import DECODING, open_image
from data.parallel import in_parallel
from data.pixels import ImageFiles, MemoryPixels, PixelSource
from utils.errors import UserError
from utils.files import locked

VERSION = 3
# Images of one size, such as CIFAR-10's, are kept on a GPU where they take no more than this.
GPU_BYTES = 2**31


class StaleCache(Exception):
    """The file is not a complete cache of this version."""


class CachedPixels(PixelSource):
    """A cache file: `signatures`, uint64 [n], and `reasons` why images cannot be read, by row.

    Threads and forked processes may read it at the same time.
    """

    def __init__(self, path: Path, files: ImageFiles) -> None:
        """Raises StaleCache where the file is cut short, of another version, or damaged behind its pixels."""
        self._in_memory: MemoryPixels | None = None
        self.path, self.files = path, files
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        try:
            with open(self._file, "rb", closefd=False) as file, np.lib.npyio.NpzFile(file) as arrays:
                assert arrays.zip is not None
                if arrays.zip.testzip() is not None or arrays["version"] != VERSION:  # testzip compares checksums
                    raise StaleCache("damaged, or of another version")
                self.signatures, self.sizes, self._offsets = (arrays[key] for key in ("signatures", "sizes", "offsets"))
                self.reasons: dict[int, str] = dict(json.loads(str(arrays["reasons"])))
        except Exception as error:  # the zip reader raises almost any exception at a damaged file
            raise StaleCache(str(error)) from error

    def read(self, row: int, first: int, last: int) -> np.ndarray:
        width = int(self.sizes[row, 1])
        pixels = np.empty((last - first, width, 3), dtype=np.uint8)
        left, offset = pixels.data.cast("B"), int(self._offsets[row]) + first * width * 3
        while len(left):
            count = os.preadv(self._file, [left], offset)
            if not count:
                raise UserError(f"{self.path} has been cut short since the run began; delete it and run again.")
            left, offset = left[count:], offset + count
        return pixels

    def on(self, device: torch.device) -> torch.Tensor | None:
        """As `PixelSource.on`: None on the CPU, for images of several sizes, and for more than `GPU_BYTES`."""
        height, width = map(int, self.sizes[0])
        if device.type == "cpu" or len(self) * height * width * 3 > GPU_BYTES or (self.sizes != self.sizes[0]).any():
            return None
        if self._in_memory is None:
            pixels = torch.stack([self.image(row) for row in range(len(self))])
            self._in_memory = MemoryPixels(pixels)
        return self._in_memory.on(device)

    def __reduce__(self) -> tuple[Callable[..., CachedPixels], tuple[Any, ...]]:
        return CachedPixels, (self.path, self.files)


def image_signatures(files: ImageFiles, stats: np.ndarray) -> np.ndarray:
    """uint64 [n]; `stats` are those of `image_files.find_files`."""
    signatures = np.empty(len(files.names), dtype=np.uint64)
    for row, (name, (length, changed)) in enumerate(zip(files.names, stats.tolist(), strict=True)):
        text = f"{DECODING}/{files.shorter_side}/{length}/{changed}/".encode() + os.fsencode(name)
        signatures[row] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return signatures


def open_cache(path: Path, files: ImageFiles, stats: np.ndarray, threads: int) -> CachedPixels:
    """The cache of a dataset in the file `path`, built by `threads` threads where it is missing or stale.

    Of two runs that need to build it, one builds and the other waits. `stats` are those of `image_files.find_files`.

    Raises:
        UserError: the cache cannot be read or written.
    """
    signatures = image_signatures(files, stats)
    try:
        cached = _fresh(path, files, signatures)
        if cached is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_name(f"{path.name}.lock"), waiting=f"Another run is building {path}: waiting for it"):
                cached = _fresh(path, files, signatures)  # another run may have built it meanwhile
                if cached is None:
                    cached = _build(path, files, signatures, stats, threads)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(
            f"The cache of decoded images {path} cannot be read or written: {reason}. Keep it in another folder with "
            "--cache DIR, or use none with --cache off (each image is then decoded each time)."
        ) from error
    return cached


def _openable(path: Path, files: ImageFiles) -> CachedPixels | None:
    try:
        return CachedPixels(path, files)
    except (FileNotFoundError, StaleCache):
        return None


def _fresh(path: Path, files: ImageFiles, signatures: np.ndarray) -> CachedPixels | None:
    cached = _openable(path, files)
    if cached is None or not np.array_equal(cached.signatures, signatures):
        return None
    # The reason may have been a passing error of the disk: try these images again.
    return cached if all(isinstance(files.decode(row), str) for row in cached.reasons) else None


def _require_space(folder: Path, files: ImageFiles, rows: np.ndarray) -> None:
    # Estimates the size of the cache from the headers of some images.
    lengths = []
    for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), 64)).astype(int)].tolist():
        path = files.root / files.names[row]
        with contextlib.suppress(Exception), open_image(path, most_pixels=files.most_pixels) as image:
            shrink = min(1.0, files.shorter_side / min(image.size))
            lengths.append(3 * image.width * image.height * shrink * shrink)
    needed = len(rows) * sum(lengths) / max(len(lengths), 1)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"The cache of decoded images needs about {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB are "
            "free; free some space, keep it in another folder with --cache DIR, or use none with --cache off."
        )


def _build(path: Path, files: ImageFiles, signatures: np.ndarray, stats: np.ndarray, threads: int) -> CachedPixels:
    _require_space(path.parent, files, np.flatnonzero(stats[:, 0] >= 0))
    previous = _openable(path, files)
    known = {} if previous is None else {key: row for row, key in enumerate(previous.signatures.tolist())}

    def pixels_of(row: int) -> np.ndarray | str:
        old = known.get(int(signatures[row]))
        if previous is not None and old is not None and old not in previous.reasons:
            return previous.read(old, 0, int(previous.sizes[old, 0]))
        return files.decode(row)

    count = len(signatures)
    offsets, sizes = np.zeros(count, dtype=np.int64), np.zeros((count, 2), dtype=np.int32)
    reasons: dict[int, str] = {}
    part = path.with_name(f"{path.name}.part")  # always the same name: the next build overwrites what a killed run left
    try:
        with open(part, "wb") as file:
            results = in_parallel(pixels_of, range(count), threads=threads, count=count, bar="Decoding images")
            for row, pixels in enumerate(results):
                if isinstance(pixels, str):
                    reasons[row] = pixels
                    continue
                offsets[row], sizes[row] = file.tell(), pixels.shape[:2]
                file.write(pixels.data)
            texts = json.dumps(list(reasons.items()))
            np.savez(file, version=VERSION, signatures=signatures, sizes=sizes, offsets=offsets, reasons=texts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return CachedPixels(path, files)
