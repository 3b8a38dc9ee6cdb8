"""From image files to packed codes, batch by batch. Needs no torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.decode import BadImage
from data.parallel import in_parallel
from data.prepare import prepare_image
from search.model import Model
from utils.command import MOST_PIXELS
from utils.errors import UserError
from utils.files import write_file
from utils.log import printable


@dataclass(frozen=True)
class Encoding:
    """How to encode: images in a batch, threads (0: one per processor), the limit of pixels of an image."""

    batch_size: int = 32
    num_workers: int = 0
    max_pixels: int = MOST_PIXELS


# The names of N images, their codes uint8 [N, ceil(K/8)] as of `Model.codes`, and (name, reason) of unreadable images.
Encoded = tuple[list[str], np.ndarray, list[tuple[str, str]]]


def encode_files(model: Model, paths: Iterable[str], encoding: Encoding = Encoding()) -> Iterator[Encoded]:
    """Encode image files in order, batch by batch; memory does not grow with their number.

    Each is treated like an image of a dataset in evaluation (docs/datasets.md). Each thread decodes a batch and then
    encodes it, so that no thread waits for another. Images that cannot be read are named on stderr.

    UserError: as `Model.codes`.
    """
    size, threads = encoding.batch_size, encoding.num_workers or os.cpu_count() or 1

    def encode(batch: list[str]) -> Encoded:
        sizes = model.image_size, model.shorter_side, encoding.max_pixels
        prepared = [(path, prepare_image(path, *sizes)) for path in batch]
        read = [(path, image) for path, image in prepared if isinstance(image, np.ndarray)]
        bad = [(path, " ".join(str(reason).split())) for path, reason in prepared if isinstance(reason, BadImage)]
        images = np.array([image for _, image in read], np.uint8).reshape(-1, model.image_size, model.image_size, 3)
        return [path for path, _ in read], model.codes(images), bad

    remaining = iter(paths)
    batches = iter(lambda: list(islice(remaining, size)), [])
    count = -(-length_hint(paths, 0) // size)
    bar = "Encoding images"
    for encoded in in_parallel(encode, batches, threads=threads, ahead=2 * threads, count=count, bar=bar, images=size):
        for path, reason in encoded[2]:
            tqdm.write(f"{printable(path)}: skipped ({reason})", file=sys.stderr)  # above the progress bar
        yield encoded


def encode_all(model: Model, paths: Sequence[str], encoding: Encoding) -> Encoded:
    """All results of `encode_files` as one; UserError if no image can be read."""
    names, codes, unreadable = zip(*encode_files(model, paths, encoding), strict=True)
    if not any(names):
        raise UserError(f"None of the {len(paths):,} images could be read.")
    return list(chain(*names)), np.concatenate(codes), list(chain(*unreadable))


def write_codes(path: Path, model: Model, paths: Sequence[str], encoding: Encoding) -> str:
    """Write the codes of images (`encode_all`) to an npz file (docs/encode.md); returns what was done, in words."""
    names, codes, unreadable = encode_all(model, paths, encoding)
    about = {"code_length": model.code_length, "settings": json.dumps(model.settings), "fingerprint": model.fingerprint}
    arrays: dict[str, Any] = {"codes": codes, "names": np.array(names), **about}
    # The same content gives the same bytes, since numpy gives every member of the archive a constant date.
    write_file(path, lambda file: np.savez_compressed(file, **arrays), "-o")
    left_out = f", {len(unreadable):,} skipped" if unreadable else ""
    return f"{len(names):,} images in {model.code_length} bits{left_out}: written to {path}"
