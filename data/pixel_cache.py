"""One file with all decoded images of a dataset at their stored size, so that training reads no JPEG.

The file is written under another name and renamed when it is complete, so a reader sees the old file, the new one or
none. Reading is `pread` of the rows that a crop needs: the pages belong to the file cache of the system, not to the
process.

Layout, all numbers little-endian:
    8 bytes   "SCHNPIX" and the version
    8 bytes   where the trailer starts
    pixels    one image after the other, uint8 [height, width, 3]
    trailer   number of images n (8 bytes); signature, offset (uint64 [n] each); height and width (int32 [n, 2]);
              JSON of {row: reason} for images that cannot be read; 16 bytes BLAKE2 of the trailer up to here

The signature of an image is a hash of its name, the size and time of modification of its file, and the stored shorter
side. A cache with other signatures than the dataset is stale: it is built again, and images with a known signature are
copied from it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.decode import decode_or_reason
from data.parallel import in_parallel
from data.pixels import PixelSource
from utils.errors import UserError
from utils.files import locked

VERSION = 2
_MAGIC = b"SCHNPIX" + bytes([VERSION])
_START = 16
_DIGEST = 16


class StaleCache(Exception):
    """The file is not a complete cache of this version."""


class CachedPixels(PixelSource):
    """A cache file. Threads and forked processes may read it at the same time.

    Attributes:
        signatures: uint64 [n].
        reasons: why an image cannot be read, by its row.
    """

    def __init__(self, path: Path, root: Path, names: Sequence[str]) -> None:
        """Open the file.

        Raises:
            FileNotFoundError: there is none.
            StaleCache: it is cut short, of another version, or damaged in its trailer.
        """
        self.path, self.root, self.names = path, root, names
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        head = os.pread(self._file, _START, 0)
        if len(head) < _START or head[:8] != _MAGIC:
            raise StaleCache("not a cache of this version")
        (start,) = struct.unpack("<Q", head[8:])
        length = os.fstat(self._file).st_size - start
        if not start or length < 8 + _DIGEST:
            raise StaleCache("cut short")
        trailer = bytearray(length)
        _read_exactly(self._file, memoryview(trailer), start)
        body = memoryview(trailer)[:-_DIGEST]
        if hashlib.blake2b(body, digest_size=_DIGEST).digest() != bytes(trailer[-_DIGEST:]):
            raise StaleCache("damaged")
        (count,) = struct.unpack("<Q", body[:8])
        self.signatures = np.frombuffer(body, dtype="<u8", count=count, offset=8)
        self._offsets = np.frombuffer(body, dtype="<u8", count=count, offset=8 + 8 * count).astype(np.int64)
        self.sizes = np.frombuffer(body, dtype="<i4", count=2 * count, offset=8 + 16 * count).reshape(count, 2)
        reasons = json.loads(bytes(body[8 + 24 * count :]))
        self.reasons: dict[int, str] = {int(row): reason for row, reason in reasons.items()}

    def read(self, row: int, first: int, last: int) -> np.ndarray:
        width = int(self.sizes[row, 1])
        pixels = np.empty((last - first, width, 3), dtype=np.uint8)
        try:
            _read_exactly(self._file, pixels.data.cast("B"), int(self._offsets[row]) + first * width * 3)
        except StaleCache as error:
            raise UserError(f"{self.path} has been cut short since the run began; delete it and run again.") from error
        return pixels

    def __reduce__(self) -> tuple[Callable[..., CachedPixels], tuple[Any, ...]]:
        return CachedPixels, (self.path, self.root, self.names)


def _read_exactly(file: int, target: memoryview, offset: int) -> None:
    while len(target):
        count = os.preadv(file, [target], offset)
        if not count:
            raise StaleCache("cut short")
        target, offset = target[count:], offset + count


def image_signatures(names: Sequence[str], stats: np.ndarray, shorter_side: int) -> np.ndarray:
    """uint64 [n]; `stats` int64 [n, 2] are size and time of modification as `image_files.find_files` gives them."""
    signatures = np.empty(len(names), dtype="<u8")
    for row, (name, (length, changed)) in enumerate(zip(names, stats.tolist(), strict=True)):
        text = f"{shorter_side}/{length}/{changed}/".encode() + os.fsencode(name)
        signatures[row] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return signatures


def open_cache(
    path: Path, root: Path, names: Sequence[str], stats: np.ndarray, shorter_side: int, threads: int
) -> CachedPixels:
    """The cache of a dataset in the file `path`, built first where it is missing or stale.

    Of two runs that need to build it, one builds and the other waits.

    Args:
        path: the cache file; its folder is created.
        root: the folder that the names start from.
        names: n file names.
        stats: int64 [n, 2], as `image_files.find_files` gives them.
        shorter_side: images are stored with this shorter side in pixels; smaller ones stay as they are.
        threads: number of threads that decode.

    Raises:
        UserError: the cache cannot be read or written.
    """
    signatures = image_signatures(names, stats, shorter_side)
    try:
        cached = _fresh(path, root, names, signatures)
        if cached is not None:
            return cached
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock"), waiting=f"Another run is building {path}: waiting for it"):
            cached = _fresh(path, root, names, signatures)  # another run may have built it meanwhile
            if cached is None:
                _build(path, root, names, stats, signatures, shorter_side, threads)
                cached = _fresh(path, root, names, signatures)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(
            f"The cache of decoded images {path} cannot be read or written: {reason}. Keep it in another folder with "
            "--cache DIR, or use none with --cache off (each image is then decoded each time)."
        ) from error
    if cached is None:
        raise UserError(f"{path} is being changed by another run with other lists; give one of them --cache DIR.")
    return cached


def _fresh(path: Path, root: Path, names: Sequence[str], signatures: np.ndarray) -> CachedPixels | None:
    cached = _openable(path, root, names)
    if cached is None or not np.array_equal(cached.signatures, signatures):
        return None
    # The reason may have been a passing error of the disk: try these images again.
    if any(not isinstance(decode_or_reason(root / names[row], 1), str) for row in cached.reasons):
        return None
    return cached


def _openable(path: Path, root: Path, names: Sequence[str]) -> CachedPixels | None:
    try:
        return CachedPixels(path, root, names)
    except (FileNotFoundError, StaleCache, ValueError):
        return None


def _require_space(folder: Path, root: Path, names: Sequence[str], rows: np.ndarray, shorter_side: int) -> None:
    # Estimates the size of the cache from the headers of some images.
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), 64)).astype(int)]
    lengths = []
    for row in sample.tolist():
        with contextlib.suppress(Exception), Image.open(root / names[row]) as image:
            shrink = min(1.0, shorter_side / min(image.size))
            lengths.append(3 * image.width * image.height * shrink * shrink)
    needed = len(rows) * sum(lengths) / max(len(lengths), 1)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"The cache of decoded images needs about {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB are "
            "free; free some space, keep it in another folder with --cache DIR, or use none with --cache off."
        )


def _build(
    path: Path,
    root: Path,
    names: Sequence[str],
    stats: np.ndarray,
    signatures: np.ndarray,
    shorter_side: int,
    threads: int,
) -> None:
    previous = _openable(path, root, names)
    known = {} if previous is None else {int(key): row for row, key in enumerate(previous.signatures.tolist())}
    _require_space(path.parent, root, names, np.flatnonzero(stats[:, 0] >= 0), shorter_side)

    def pixels_of(row: int) -> np.ndarray | str:
        old = known.get(int(signatures[row]))
        if old is not None and previous is not None and previous.sizes[old, 0]:
            return previous.read(old, 0, int(previous.sizes[old, 0]))
        return decode_or_reason(root / names[row], shorter_side)

    count = len(names)
    offsets, sizes = np.zeros(count, dtype="<u8"), np.zeros((count, 2), dtype="<i4")
    reasons: dict[int, str] = {}
    part = path.with_name(f"{path.name}.part")  # always the same name: the next build overwrites what a killed run left
    try:
        with open(part, "wb") as file:
            file.write(bytes(_START))
            position = _START
            results = in_parallel(pixels_of, range(count), threads=threads, count=count, bar="Decoding images")
            for row, pixels in enumerate(results):
                if isinstance(pixels, str):
                    reasons[row] = pixels
                    continue
                offsets[row], sizes[row] = position, pixels.shape[:2]
                file.write(pixels.data.cast("B"))
                position += pixels.nbytes
            trailer = struct.pack("<Q", count) + signatures.tobytes() + offsets.tobytes() + sizes.tobytes()
            trailer += json.dumps(reasons).encode()
            file.write(trailer + hashlib.blake2b(trailer, digest_size=_DIGEST).digest())
            file.seek(0)
            file.write(_MAGIC + struct.pack("<Q", position))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
