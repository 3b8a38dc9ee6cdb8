"""A collection of image files: are they all there, can they all be read, and their pixels, with or without a cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.decode import BadImage, decode
from data.options import Options
from data.parallel import in_parallel
from data.pixels import PixelSource
from utils.errors import UserError

logger = logging.getLogger(__name__)

_NAMED = 10  # bad images named in a message; of the others the number


def find_files(root: Path, names: Sequence[str], threads: int) -> np.ndarray:
    """Length and time of change of each file: int64 [n, 2]; (-1, -1) where there is no such file."""

    def look(chunk: Sequence[str]) -> list[tuple[int, int]]:
        found = []
        for name in chunk:
            try:
                status = os.stat(os.path.join(root, name))
                found.append((status.st_size, status.st_mtime_ns))
            except (OSError, ValueError):
                found.append((-1, -1))
        return found

    chunks = [names[start : start + 256] for start in range(0, len(names), 256)]
    stats = in_parallel(look, chunks, threads=max(threads, 8), count=len(chunks), bar="Looking for images", images=256)
    return np.array([pair for chunk in stats for pair in chunk], dtype=np.int64).reshape(-1, 2)


def describe_bad(names: Sequence[str], reasons: dict[int, str]) -> str:
    """The first ten bad images, each with its reason, and how many more there are."""
    shown = ", ".join(f"{names[row]} ({reasons[row]})" for row in sorted(reasons)[:_NAMED])
    return shown + (f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else "")


def judge_bad(root: Path, names: Sequence[str], reasons: dict[int, str], on_bad_image: str) -> None:
    """Stop at bad images, or say in the log that they are left out; silent where there are none.

    Raises:
        UserError: `on_bad_image` is "error", or no image is left.
    """
    if not reasons:
        return
    what = f"{len(reasons)} of {len(names)} images below {root} cannot be used: {describe_bad(names, reasons)}"
    if len(reasons) == len(names):
        raise UserError(f"{what}. Is this the right folder?")
    if on_bad_image == "error":
        raise UserError(f"{what}. Replace them, or leave them out with --on-bad-image skip.")
    logger.warning("%s; they are left out", what)


class FilePixels(PixelSource):
    """Every image decoded from its file each time it is asked for."""

    def __init__(self, root: Path, names: Sequence[str], sizes: np.ndarray, shorter_side: int) -> None:
        self.root, self.names, self.sizes, self.shorter_side = root, names, sizes, shorter_side

    def read(self, row: int, first: int, last: int) -> np.ndarray:
        assert self.root is not None and self.names is not None
        path = self.root / self.names[row]
        try:
            pixels = decode(path, self.shorter_side)
        except BadImage as error:
            raise UserError(f"{path} could be read when the run began and cannot any more ({error}).") from error
        if pixels.shape[:2] != tuple(self.sizes[row]):
            raise UserError(f"{path} has changed since the run began.")
        return pixels[first:last]


def read_all(
    root: Path, names: Sequence[str], rows: Iterable[int], count: int, shorter_side: int, threads: int, bar: str
) -> Iterator[tuple[int, np.ndarray | BadImage]]:
    """Decode the images `rows` in order: (row, pixels uint8 [h, w, 3] or why there are none)."""

    def read(row: int) -> tuple[int, np.ndarray | BadImage]:
        try:
            return row, decode(root / names[row], shorter_side)
        except BadImage as error:
            return row, error

    return in_parallel(read, rows, threads=threads, count=count, bar=bar)


def open_images(root: Path, names: Sequence[str], cache_name: str, shorter_side: int, options: Options) -> PixelSource:
    """The pixels of image files, all of which have been read once: sizes of bad ones are (0, 0).

    Args:
        root: folder that the names start from.
        names: n file names.
        cache_name: what the cache's file is called before the size.
        shorter_side: images are stored with this shorter side, pixels, or their own where that is less.

    Raises:
        UserError: images are missing or cannot be read and are not to be skipped; the cache cannot be written.
    """
    from data.pixel_cache import open_cache

    stats = find_files(root, names, options.threads)
    missing = {int(row): "missing" for row in np.flatnonzero(stats[:, 0] < 0)}
    if missing and (options.on_bad_image == "error" or len(missing) == len(names)):
        judge_bad(root, names, missing, "error")
    if options.cache == "off":
        sizes = np.zeros((len(names), 2), dtype=np.int32)
        reasons = dict(missing)
        present = np.flatnonzero(stats[:, 0] >= 0).tolist()
        for row, pixels in read_all(
            root, names, present, len(present), shorter_side, options.threads, "Checking images"
        ):
            if isinstance(pixels, BadImage):
                reasons[row] = str(pixels)
            else:
                sizes[row] = pixels.shape[:2]
        source: PixelSource = FilePixels(root, names, sizes, shorter_side)
    else:
        folder = root if options.cache == "on" else Path(options.cache)
        cached = open_cache(folder / f"{cache_name}-{shorter_side}.pixels", root, names, stats, shorter_side, options)
        source, reasons = cached, cached.reasons
    judge_bad(root, names, reasons, options.on_bad_image)
    return source
