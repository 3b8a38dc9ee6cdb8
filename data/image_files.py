"""The image files of a dataset: check that all exist and can be read, and open them with or without a cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.decode import BadImage, decode, decode_or_reason
from data.options import Options
from data.parallel import in_parallel
from data.pixel_cache import open_cache
from data.pixels import PixelSource
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


def judge_bad(root: Path, names: Sequence[str], reasons: dict[int, str], on_bad_image: str) -> None:
    """Stop at bad images, or log that they are left out; both name the first ten.

    Args:
        root: the folder that the names start from.
        names: of all images.
        reasons: why an image is bad, by its row in `names`.
        on_bad_image: "error" or "skip".

    Raises:
        UserError: `on_bad_image` is "error", or all images are bad.
    """
    if not reasons:
        return
    shown = ", ".join(f"{names[row]} ({reasons[row]})" for row in sorted(reasons)[:_NAMED])
    more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    message = f"{len(reasons)} of {len(names)} images in {root} cannot be used: {shown}{more}"
    if len(reasons) == len(names):
        raise UserError(f"{message}. Is this the right folder?")
    if on_bad_image == "error":
        raise UserError(f"{message}. Replace them, or leave them out with --on-bad-image skip.")
    log.warning("%s; they are left out", message)


class FilePixels(PixelSource):
    """Decodes an image from its file each time it is needed."""

    def __init__(self, root: Path, names: Sequence[str], sizes: np.ndarray, shorter_side: int) -> None:
        self.root, self.names, self.sizes, self.shorter_side = root, names, sizes, shorter_side

    def read(self, row: int, first: int, last: int) -> np.ndarray:
        assert self.root is not None and self.names is not None
        path = self.root / self.names[row]
        try:
            pixels = decode(path, self.shorter_side)
        except BadImage as error:
            raise UserError(f"{path} could be read when the run began, but not any more ({error}).") from error
        if pixels.shape[:2] != tuple(self.sizes[row]):
            raise UserError(f"{path} has changed since the run began; start the run again.")
        return pixels[first:last]


def open_images(root: Path, names: Sequence[str], cache_name: str, shorter_side: int, options: Options) -> PixelSource:
    """The pixels of image files. Every image has been decoded once; the size of a bad one is (0, 0).

    Args:
        root: the folder that the names start from.
        names: n file names.
        cache_name: start of the name of the cache file; `shorter_side` follows.
        shorter_side: images are stored with this shorter side in pixels; smaller ones stay as they are.
        options: those of `load_data`.

    Raises:
        UserError: images are missing or cannot be read and should not be skipped; or the cache cannot be written.
    """
    stats = find_files(root, names, options.threads)
    missing = {int(row): "missing" for row in np.flatnonzero(stats[:, 0] < 0)}
    if options.on_bad_image == "error" or len(missing) == len(names):
        judge_bad(root, names, missing, "error")
    source: PixelSource
    if options.cache == "off":
        sizes, reasons = np.zeros((len(names), 2), dtype=np.int32), dict(missing)
        present = np.flatnonzero(stats[:, 0] >= 0).tolist()
        paths = (root / names[row] for row in present)
        results = in_parallel(
            lambda path: decode_or_reason(path, shorter_side),
            paths,
            threads=options.threads,
            count=len(present),
            bar="Checking images",
        )
        for row, result in zip(present, results, strict=True):
            if isinstance(result, str):
                reasons[row] = result
            else:
                sizes[row] = result.shape[:2]
        source = FilePixels(root, names, sizes, shorter_side)
    else:
        folder = root if options.cache == "on" else Path(options.cache)
        path = folder / f"{cache_name}-{shorter_side}.pixels"
        source = cached = open_cache(path, root, names, stats, shorter_side, options.threads)
        reasons = cached.reasons
    judge_bad(root, names, reasons, options.on_bad_image)
    return source
