"""From image files to packed codes, batch by batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.decode import EXTENSIONS, BadImage, decode
from data.list_files import read_names, split_labels
from data.parallel import in_parallel
from data.transform import eval_windows, make_image
from data.walk import images_below
from search.model import TrainedModel
from utils.command import MOST_PIXELS
from utils.errors import UserError

CPU = torch.device("cpu")
CPU_ROWS = 64  # images in every input of the network on a CPU: its rounding depends on their number


# ---- Which images ----


def find_images(inputs: Sequence[str]) -> list[str]:
    """The paths of all images that `inputs` name, as they can be opened from the current folder.

    Args:
        inputs: image files; folders, for every image below them, sorted; lists (`.txt`) with one path per line,
            relative to the folder of the list.

    Raises:
        UserError: an input does not exist, a list is malformed, or there is no image.
    """
    found: list[str] = []
    for given in inputs:
        if os.path.isdir(given):
            found += [os.path.join(given, name) for name in images_below(Path(given))]
        elif not os.path.exists(given):
            raise UserError(f"{given}: there is no such file or folder.")
        elif given.lower().endswith(".txt"):
            folder = os.path.dirname(given)
            found += [os.path.join(folder, without_labels(name)) for name in read_names(Path(given))]
        else:
            found.append(given)
    if not found:
        raise UserError(f"{', '.join(inputs)}: no image found; name image files, folders of images, or lists.")
    return found


def without_labels(line: str) -> str:
    """A line of a list without the labels after the name: ``a b.jpg 0 1 0`` → ``a b.jpg``."""
    name, _ = split_labels(line)
    is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
    return name if is_image else line


def print_skipped(name: str, reason: str) -> None:
    """Say on stderr, above the progress bar, that an image is left out."""
    tqdm.write(f"{name}: skipped ({reason})", file=sys.stderr)


# ---- Codes ----


@dataclass(frozen=True)
class Encoding:
    """How to encode: images in a batch, where, threads that read images ahead (0: one per processor), pixel limit."""

    batch_size: int = 64
    device: torch.device = CPU
    num_workers: int = 0
    max_pixels: int = MOST_PIXELS


ON_CPU = Encoding()


def encode_files(
    trained: TrainedModel,
    paths: Iterable[str],
    encoding: Encoding = ON_CPU,
    *,
    on_bad_image: Callable[[str, str], None] = print_skipped,
    bar: str = "Encoding images",
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Encode image files in order, batch by batch; memory does not grow with their number.

    Each is treated like an image of a dataset in evaluation (docs/datasets.md). On a CPU the input of the network
    always has the images of `CPU_ROWS` entries of `paths`, with zeros for images that cannot be read and after the last
    one, so that the batch size does not change the codes. On a GPU it has one batch.

    Args:
        trained: its network is moved to the device.
        paths: file names.
        encoding: all batches but the last have its `batch_size`.
        on_bad_image: called with the name and the reason for each file that cannot be read as an image.
        bar: the text of the progress bar.

    Yields:
        (names of N images, codes uint8 [N, ceil(K/8)]). Bit k of a code is bit 7 - k % 8 of byte k // 8, the order of
        `np.packbits`: 1 where U_image >= 0 (code +1), 0 where it is negative (code -1). The unused bits after K are 0.

    Raises:
        UserError: an output of the network is not a number, or the memory of the GPU is too small.
    """
    size = encoding.batch_size
    if size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {size}.")
    prepared = in_parallel(
        lambda path: (path, prepare_image(path, trained.image_size, trained.shorter_side, encoding.max_pixels)),
        paths,
        threads=encoding.num_workers or os.cpu_count() or 1,
        count=length_hint(paths, 0),
        bar=bar,
    )
    rows = CPU_ROWS if encoding.device.type == "cpu" else size
    names: list[str] = []
    codes = np.zeros((0, -(-trained.code_length // 8)), dtype=np.uint8)
    for seen, packed in _encode_in_blocks(trained, prepared, rows, encoding.device, on_bad_image):
        names, codes = names + seen, np.concatenate((codes, packed))
        while len(names) >= size:
            yield names[:size], codes[:size]
            names, codes = names[size:], codes[size:]
    if names:
        yield names, codes


def _encode_in_blocks(
    trained: TrainedModel,
    prepared: Iterable[tuple[str, np.ndarray | BadImage]],
    rows: int,
    device: torch.device,
    on_bad_image: Callable[[str, str], None],
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names, packed codes) of `rows` entries of the list at a time.

    An image that cannot be read keeps its place, so that the blocks are the same wherever the list is cut at a multiple
    of `rows`.
    """
    model = trained.model.to(device).to(memory_format=torch.channels_last)
    images = np.zeros((rows, 3, trained.image_size, trained.image_size), dtype=np.float32)
    names: list[str] = []
    places: list[int] = []  # of `names` in `images`
    for number, (path, image) in enumerate(prepared):
        place = number % rows
        if isinstance(image, BadImage):
            on_bad_image(path, " ".join(str(image).split()))
        else:
            images[place] = image
            names.append(path)
            places.append(place)
        if place == rows - 1 and names:
            yield names, packed_codes(model, images, device)[places]
            names, places = [], []
            images[:] = 0
    if names:
        yield names, packed_codes(model, images, device)[places]


def prepare_image(
    path: str | os.PathLike[str], image_size: int, shorter_side: int, most_pixels: int = MOST_PIXELS
) -> np.ndarray | BadImage:
    """The input of the network in evaluation, float32 [3, S, S], from a file; or why the file cannot be read."""
    try:
        pixels = decode(path, shorter_side, most_pixels=most_pixels)
    except BadImage as error:
        return error
    image = np.empty((3, image_size, image_size), dtype=np.float32)
    make_image(pixels, eval_windows(np.array([pixels.shape[:2]]), image_size, shorter_side)[0], image)
    return image


def packed_codes(model: nn.Module, images: np.ndarray, device: torch.device) -> np.ndarray:
    """The codes of prepared images: float32 [N, 3, S, S] → uint8 [N, ceil(K/8)]. Raises as `encode_files`."""
    try:
        with torch.inference_mode():
            code = model(torch.from_numpy(images).to(device))[1].float().cpu().numpy()
    except torch.OutOfMemoryError as error:
        raise UserError(f"{device}: {len(images)} images do not fit its memory; lower --batch-size.") from error
    if np.isnan(code).any():
        raise UserError("The output of the network is not a number for some image; use another model.")
    return np.packbits(code >= 0, axis=1)
