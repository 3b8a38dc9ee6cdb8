"""From image files to packed codes, batch by batch: what every command of `python -m search` encodes with."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.decode import EXTENSIONS, BadImage, decode
from data.folder import images_below
from data.list_files import read_names
from data.parallel import in_parallel
from data.transform import eval_windows, make_image
from search.model import TrainedModel
from utils.errors import UserError

CPU_ROWS = 64  # images in every input of the network on a CPU: its rounding depends on their number
_LABELS = re.compile(r"(\s+\d+)+$")


# ---- Which images ----


def find_images(inputs: Iterable[str]) -> list[str]:
    """The names of all images that `inputs` stand for, each such that it can be opened from the current folder.

    Args:
        inputs: image files, taken as they are; folders, with every image below them, sorted; lists (`.txt`), with one
            path per line, relative to the folder of the list.

    Raises:
        UserError: an input does not exist, a list is malformed (`data.list_files.read_names`), or there is no image.
    """
    inputs = list(inputs)
    found: list[str] = []
    for given in inputs:
        if os.path.isdir(given):
            found += [os.path.join(given, name) for name in images_below(Path(given), "")]
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
    """A line of a list without the whole numbers after the name: ``a b.jpg 0 1 0`` → ``a b.jpg``."""
    name = _LABELS.sub("", line)
    is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
    return name if is_image else line


def print_skipped(name: str, reason: str) -> None:
    """Say on stderr, above the progress bar, that an image is left out."""
    tqdm.write(f"{name}: skipped ({reason})", file=sys.stderr)


# ---- Codes ----


def encode_files(
    trained: TrainedModel,
    paths: Iterable[str],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    on_bad_image: Callable[[str, str], None] = print_skipped,
    bar: str = "Encoding images",
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Encode image files in order, batch by batch; memory does not grow with their number.

    Each file is treated like an image of a dataset in evaluation (docs/datasets.md): decoded, upright, RGB, shorter
    side at most R, Resize(R), CenterCrop(S), normalised, with R = `trained.shorter_side`.

    On a CPU the input of the network always has the images of `CPU_ROWS` entries of `paths`, with zeros for images that
    cannot be read and after the last one, whatever `batch_size` is. So the codes are the same to the last bit. On a GPU
    the input has `batch_size` images.

    Args:
        trained: from `search.model.load_model`; its network is moved to `device`.
        paths: n file names.
        batch_size: images in a yielded batch; only the last one has fewer.
        device: where to compute.
        num_workers: threads that read images ahead; 0: one per processor.
        on_bad_image: called with the name and the reason for each file that cannot be read as an image.
        bar: the name of the progress bar, which is shown on a terminal only.

    Yields:
        (names of N images, codes uint8 [N, ceil(K/8)]). Bit k of a code is bit 7 - k % 8 of byte k // 8, the order of
        `np.packbits`: 1 where U_image >= 0 (code +1), 0 where it is negative (code -1). The unused bits after K are 0.

    Raises:
        UserError: an output of the network is not a number, or the memory of the GPU is too small.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {batch_size}.")
    device = torch.device(device)
    rows = CPU_ROWS if device.type == "cpu" else batch_size
    width = -(-trained.code_length // 8)
    names: list[str] = []
    codes = bytearray()

    def batch() -> tuple[list[str], np.ndarray]:
        taken, packed = names[:batch_size], np.frombuffer(bytes(codes[: batch_size * width]), dtype=np.uint8)
        del names[:batch_size], codes[: batch_size * width]
        return taken, packed.reshape(-1, width)

    prepared = in_parallel(
        lambda path: (path, prepare_image(path, trained.image_size, trained.shorter_side)),
        paths,
        threads=num_workers or os.cpu_count() or 1,
        count=length_hint(paths, 0),
        bar=bar,
    )
    for seen, packed in _encode_in_blocks(trained, prepared, rows, device, on_bad_image):
        names += seen
        codes += packed.tobytes()
        while len(names) >= batch_size:
            yield batch()
    if names:
        yield batch()


def _encode_in_blocks(
    trained: TrainedModel,
    prepared: Iterable[tuple[str, np.ndarray | BadImage]],
    rows: int,
    device: torch.device,
    on_bad_image: Callable[[str, str], None],
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names, packed codes) of `rows` entries of the list at a time; the last input of the network is filled up.

    An image that cannot be read keeps its place, with zeros. So a later image has the same place in the same block
    wherever the list is cut at a multiple of `rows`.
    """
    model = trained.model.to(device).to(memory_format=torch.channels_last)
    images = np.zeros((rows, 3, trained.image_size, trained.image_size), dtype=np.float32)
    names: list[str] = []
    places: list[int] = []  # of `names` in `images`
    place = -1
    for path, image in prepared:
        place = (place + 1) % rows
        if isinstance(image, BadImage):
            images[place] = 0
            on_bad_image(path, " ".join(str(image).split()))
        else:
            images[place] = image
            names.append(path)
            places.append(place)
        if place == rows - 1 and names:
            yield names, packed_codes(model, images, device)[places]
            names, places = [], []
    if names:
        images[place + 1 :] = 0
        yield names, packed_codes(model, images, device)[places]


def prepare_image(path: str | os.PathLike[str], image_size: int, shorter_side: int) -> np.ndarray | BadImage:
    """The input of the network in evaluation, float32 [3, S, S], from a file; or why the file cannot be read."""
    try:
        pixels = decode(path, shorter_side)
    except BadImage as error:
        return error
    image = np.empty((3, image_size, image_size), dtype=np.float32)
    make_image(pixels, eval_windows(np.array([pixels.shape[:2]]), image_size, shorter_side)[0], image)
    return image


def packed_codes(model: nn.Module, images: np.ndarray, device: torch.device) -> np.ndarray:
    """The codes of prepared images: images float32 [N, 3, S, S] → uint8 [N, ceil(K/8)].

    Raises:
        UserError: an output is not a number, or the memory of the GPU is too small.
    """
    try:
        with torch.inference_mode():
            code = model(torch.from_numpy(images).to(device))[1].float().cpu().numpy()
    except torch.OutOfMemoryError as error:
        raise UserError(f"{device}: {len(images)} images do not fit its memory; lower --batch-size.") from error
    if np.isnan(code).any():
        raise UserError("The output of the network is not a number for some image; use another model.")
    return np.packbits(code >= 0, axis=1)
