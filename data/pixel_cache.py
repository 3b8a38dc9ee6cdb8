"""One file with every image of a collection decoded and made smaller, so that training reads no JPEG.

The file is written beside its final name and renamed when whole, so a reader sees the old one, the new one or none.
Reading is `pread` of the rows that a crop needs: the pages belong to the system's file cache, not to the process.

Layout, all numbers little-endian:
    8 bytes   "SCHNPIX" and the version
    8 bytes   where the trailer starts
    pixels    image after image, uint8 [height, width, 3]
    trailer   number of images n (8 bytes); signature, offset (uint64 [n] each); height and width (int32 [n, 2]);
              JSON of {row: reason} for images that cannot be read; 16 bytes BLAKE2 of the trailer up to here

An image's signature is a hash of its name, its file's length and time of change, and the stored shorter side. A cache
whose signatures are not those of the collection is stale: it is rebuilt, and images whose signature is in it are
copied.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.decode import BadImage, decode
from data.options import Options
from data.parallel import in_parallel
from data.pixels import PixelSource
from utils.errors import UserError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system: two runs may both build, the later one's file stays
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

VERSION = 2
_MAGIC = b"SCHNPIX" + bytes([VERSION])
_START = 16
_DIGEST = 16


class StaleCache(Exception):
    """The file is no whole cache of this version."""


class CachedPixels(PixelSource):
    """A cache file. Safe to read from threads and from forked processes."""

    def __init__(self, path: Path, root: Path, names: Sequence[str]) -> None:
        """Open the file; raises StaleCache where it is cut short, of another version or damaged in its trailer."""
        self.path, self.root, self.names = path, root, names
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            self._read_trailer()
        except BaseException:
            os.close(self._file)
            self._file = -1
            raise

    def _read_trailer(self) -> None:
        head = os.pread(self._file, _START, 0)
        if len(head) < _START or head[:8] != _MAGIC:
            raise StaleCache("no cache of this version")
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
            raise UserError(f"{self.path} has been cut short since the run began: delete it and run again.") from error
        return pixels

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "root": self.root, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _read_exactly(file: int, target: memoryview, offset: int) -> None:
    while len(target):
        count = os.preadv(file, [target], offset)
        if not count:
            raise StaleCache("cut short")
        target, offset = target[count:], offset + count


def image_signatures(names: Sequence[str], stats: np.ndarray, shorter_side: int) -> np.ndarray:
    """uint64 [n]; `stats` int64 [n, 2] are length and time of change, as `image_files.find_files` gives them."""
    signatures = np.empty(len(names), dtype="<u8")
    for row, (name, (length, changed)) in enumerate(zip(names, stats.tolist(), strict=True)):
        text = f"{shorter_side}/{length}/{changed}/".encode() + os.fsencode(name)
        signatures[row] = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return signatures


def open_cache(
    path: Path, root: Path, names: Sequence[str], stats: np.ndarray, shorter_side: int, options: Options
) -> CachedPixels:
    """The cache of a collection at `path`, built first where it is not there or stale.

    Of two runs that want to build it, one builds and the other waits.

    Raises:
        UserError: the cache cannot be written.
    """
    signatures = image_signatures(names, stats, shorter_side)
    try:
        cached = _fresh(path, root, names, signatures)
        if cached is not None:
            return cached
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as alone:
            cached = _fresh(path, root, names, signatures)  # another run may have built it meanwhile
            if cached is None:
                part = path.with_name(f"{path.name}.part" if alone else f"{path.name}.{os.getpid()}.part")
                _build(path, part, root, names, stats, signatures, shorter_side, options.threads)
                cached = _fresh(path, root, names, signatures)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise UserError(
            f"The cache of decoded images {path} cannot be read or written: {reason}. Keep it in another folder with "
            "--cache DIR, or do without with --cache off (each image is then decoded each time)."
        ) from error
    if cached is None:
        raise UserError(f"{path} is being changed by another run with other lists: give one of them --cache DIR.")
    return cached


def _fresh(path: Path, root: Path, names: Sequence[str], signatures: np.ndarray) -> CachedPixels | None:
    cached = _openable(path, root, names)
    if cached is None or not np.array_equal(cached.signatures, signatures):
        return None
    # What could not be read may have been the disk's fault, not the image's: look again.
    if any(_readable(root / names[row]) for row in cached.reasons):
        return None
    return cached


def _readable(path: Path) -> bool:
    try:
        decode(path, 1)
    except BadImage:
        return False
    return True


def _openable(path: Path, root: Path, names: Sequence[str]) -> CachedPixels | None:
    try:
        return CachedPixels(path, root, names)
    except (FileNotFoundError, StaleCache, ValueError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock file; yields whether it is held (some network file systems know no locks)."""
    with open(path.with_name(f"{path.name}.lock"), "ab") as file:
        held = False
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                logger.info("Another run is building %s: waiting for it", path)
                fcntl.flock(file, fcntl.LOCK_EX)
                held = True
            except OSError:
                logger.warning("The file system of %s knows no locks: building without one", path)
        yield held


def _require_space(folder: Path, root: Path, names: Sequence[str], rows: np.ndarray, shorter_side: int) -> None:
    """Estimate the file's size from some images' headers; UserError where the disk has not that much room."""
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
            f"The cache of decoded images needs about {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: "
            "make room, keep it in another folder with --cache DIR, or do without with --cache off."
        )


def _build(
    path: Path,
    part: Path,
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
        try:
            return decode(root / names[row], shorter_side)
        except BadImage as error:
            return str(error)

    count = len(names)
    offsets, sizes = np.zeros(count, dtype="<u8"), np.zeros((count, 2), dtype="<i4")
    reasons: dict[int, str] = {}
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
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
