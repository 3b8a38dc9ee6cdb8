"""Codes of image files, batch by batch: what `python -m search encode` and anything that stores codes is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint

import numpy as np
import torch
from torch import nn

from data.decode import BadImage, decode
from data.parallel import in_parallel
from data.transform import eval_windows, make_image
from search.model import TrainedModel
from utils.errors import UserError
from utils.log import log

CPU_ROWS = 64  # images that the network sees at once on a CPU, always: its roundings depend on their number


def log_bad_image(name: str, reason: str) -> None:
    """Say in the log that an image is left out."""
    log.warning("%s cannot be used (%s); it is left out", name, reason)


def encode_files(
    trained: TrainedModel,
    paths: Iterable[str],
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    on_bad_image: Callable[[str, str], None] = log_bad_image,
    bar: str = "Encoding images",
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Hash image files in order, batch by batch; memory does not grow with their number.

    Each file takes the way of a collection's images in evaluation (docs/datasets.md): decoded, upright, RGB, shorter
    side at most R, Resize(R), CenterCrop(S), normalised, with R = `trained.shorter_side`.

    On a CPU the network always sees `CPU_ROWS` places of `paths` at once, the last ones and those of images that cannot
    be read filled up with zeros, whatever `batch_size` is: the codes are the same to the last bit. On a GPU it sees
    `batch_size`.

    Args:
        trained: of `search.model.load_model`; its network is moved to `device`.
        paths: n file names.
        batch_size: images in a yielded batch; only the last one has fewer.
        device: where to compute.
        num_workers: threads that read images ahead; 0: one a processor.
        on_bad_image: called with the name and the reason of a file that cannot be read as an image; it is left out.
        bar: the name of the progress bar, which shows on a terminal only.

    Yields:
        (names of N images, codes uint8 [N, ceil(K/8)]). Bit k of a code is bit 7 - k % 8 of byte k // 8, as
        `np.packbits` has it: 1 for U_image >= 0, which is +1, and 0 for -1; the bits behind K are 0.

    Raises:
        UserError: the network gave something that is no number, or the GPU's memory is too small.
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
    for seen, packed in _hash_in_blocks(trained, prepared, rows, device, on_bad_image):
        names += seen
        codes += packed.tobytes()
        while len(names) >= batch_size:
            yield batch()
    if names:
        yield batch()


def _hash_in_blocks(
    trained: TrainedModel,
    prepared: Iterable[tuple[str, np.ndarray | BadImage]],
    rows: int,
    device: torch.device,
    on_bad_image: Callable[[str, str], None],
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names, packed codes) of `rows` places of the list at a time; the network's input has as many rows at the end.

    An image that cannot be read keeps its place, with zeros: so a later image has the same place in the same block
    wherever a list is cut at a multiple of `rows`.
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
            yield names, _packed_codes(model, images, device)[places]
            names, places = [], []
    if names:
        images[place + 1 :] = 0
        yield names, _packed_codes(model, images, device)[places]


def prepare_image(path: str | os.PathLike[str], image_size: int, shorter_side: int) -> np.ndarray | BadImage:
    """A file as the network sees it in evaluation, float32 [3, S, S], or why it cannot be read."""
    try:
        pixels = decode(path, shorter_side)
    except BadImage as error:
        return error
    image = np.empty((3, image_size, image_size), dtype=np.float32)
    make_image(pixels, eval_windows(np.array([pixels.shape[:2]]), image_size, shorter_side)[0], image)
    return image


def _packed_codes(model: nn.Module, images: np.ndarray, device: torch.device) -> np.ndarray:
    """images float32 [N, 3, S, S] → packed codes uint8 [N, ceil(K/8)]."""
    try:
        with torch.inference_mode():
            code = model(torch.from_numpy(images).to(device))[1].float().cpu().numpy()
    except torch.OutOfMemoryError as error:
        raise UserError(f"{device}: its memory does not hold {len(images)} images; lower --batch-size.") from error
    if np.isnan(code).any():
        raise UserError("The network's output is not a number for some image; its weights are not usable.")
    return np.packbits(code >= 0, axis=1)
