"""The image files of a dataset: check that all can be read, and open them with or without a cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.options import Options
from data.parallel import in_parallel
from data.pixel_cache import open_cache
from data.pixels import ImageFiles, PixelSource
from utils.errors import UserError
from utils.log import log

_NAMED = 10  # bad images that a message names; it counts the others


def find_files(root: Path, names: Sequence[str], threads: int) -> np.ndarray:
    """Size in bytes and time of modification in ns of each file: int64 [n, 2]; (-1, -1) where there is no such file."""

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


def judge_bad(files: ImageFiles, reasons: dict[int, str], on_bad_image: str) -> None:
    """Stop at bad images, or log that they are left out ("skip"); both name the first ten of `reasons`, by row.

    Raises:
        UserError: `on_bad_image` is "error", or all images are bad.
    """
    if not reasons:
        return
    shown = ", ".join(f"{files.names[row]} ({reasons[row]})" for row in sorted(reasons)[:_NAMED])
    more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    message = f"{len(reasons)} of {len(files.names)} images in {files.root} cannot be used: {shown}{more}"
    if len(reasons) == len(files.names):
        raise UserError(f"{message}. Is this the right folder?")
    if on_bad_image == "error":
        raise UserError(f"{message}. Replace them, or leave them out with --on-bad-image skip.")
    log.warning("%s; they are left out", message)


class FilePixels(PixelSource):
    """Decodes an image from its file each time it is needed."""

    files: ImageFiles

    def __init__(self, files: ImageFiles, sizes: np.ndarray) -> None:
        self.files, self.sizes = files, sizes

    def read(self, row: int, first: int, last: int) -> np.ndarray:
        path, pixels = self.files.root / self.files.names[row], self.files.decode(row)
        if isinstance(pixels, str):
            raise UserError(f"{path} could be read when the run began, but not any more ({pixels}).")
        if pixels.shape[:2] != tuple(self.sizes[row]):
            raise UserError(f"{path} has changed since the run began; start the run again.")
        return pixels[first:last]


def check_files(files: ImageFiles, missing: dict[int, str], threads: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode all images that are not `missing`: int32 [n, 2] as `PixelSource.sizes`, and why images are bad, by row."""
    count = len(files.names)
    sizes, reasons = np.zeros((count, 2), dtype=np.int32), dict(missing)
    rows = [row for row in range(count) if row not in missing]
    results = in_parallel(files.decode, rows, threads=threads, count=len(rows), bar="Checking images")
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, str):
            reasons[row] = result
        else:
            sizes[row] = result.shape[:2]
    return sizes, reasons


def open_images(files: ImageFiles, cache_name: str, options: Options) -> PixelSource:
    """The pixels of image files, each decoded once as a check; the size of a bad image is (0, 0).

    `cache_name` is the start of the name of the cache file; the shorter side follows.

    Raises:
        UserError: images are missing or cannot be read and should not be skipped; or the cache cannot be written.
    """
    stats = find_files(files.root, files.names, options.threads)
    missing = {int(row): "missing" for row in np.flatnonzero(stats[:, 0] < 0)}
    if options.on_bad_image == "error" or len(missing) == len(files.names):
        judge_bad(files, missing, "error")
    if options.cache == "off":
        sizes, reasons = check_files(files, missing, options.threads)
        judge_bad(files, reasons, options.on_bad_image)
        return FilePixels(files, sizes)
    folder = files.root if options.cache == "on" else Path(options.cache)
    cached = open_cache(folder / f"{cache_name}-{files.shorter_side}.pixels", files, stats, options.threads)
    judge_bad(files, cached.reasons, options.on_bad_image)
    return cached
