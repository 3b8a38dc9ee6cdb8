"""Images per second of the data pipeline, compared with the usual way: one image at a time by Pillow and torchvision.

    python -m benchmarks.data_pipeline [--quick] [--rounds 5]

All ways make batches of 64 training images of 224 × 224 (RandomResizedCrop, mirror image, normalised) from the same
images. The JPEG files are made here: smooth structure with film grain, with about as many bytes as photos.

- usual way: a Dataset that opens the file with Pillow, torchvision transforms, DataLoader with 0 workers. It takes only
  the first 128 images: its speed does not depend on their number, and it is slow.
- cold: `load_data` of the new dataset (which decodes every image into the cache) and one pass.
- warm: a pass when the cache exists.
The ratio is to the usual way with one thread or with torch's default, whichever is faster.

The process of the usual way has the defaults of the C library. Ours keeps freed memory, as run.py does; "usual way,
freed memory kept" shows the effect of this alone.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.timing import RESULTS, in_turn, print_table, worker, write_results
from data import ImageDataset, Options, load_data
from data.data_loader import train_batches
from data.pixels import MemoryPixels
from data.windows import IMAGENET_MEAN, IMAGENET_STD, shorter_side_for
from utils.command import Parser, bounded, run_command
from utils.devices import keep_freed_memory

PROGRAM = "python -m benchmarks.data_pipeline"
BATCH_SIZE = 64
IMAGE_SIZE = 224
USUAL_IMAGES = 128
IMAGES = ("JPEG 500x375", "CIFAR-10 size")
DEFAULTS = ("usual way", "usual way, 1 thread")  # with the defaults of the C library
WAYS = (*DEFAULTS, "usual way, freed memory kept", "cold", "warm", "warm, 1 thread")


class UsualImages(Dataset[tuple[torch.Tensor, int]]):
    """Opens and transforms one image at a time: JPEG files, or uint8 [n, h, w, 3] as in torchvision's CIFAR10."""

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def __init__(self, items: Sequence[Path] | np.ndarray) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        item = self.items[index]
        if isinstance(item, Path):
            with Image.open(item) as image:
                return self.transform(image.convert("RGB")), index
        return self.transform(Image.fromarray(item)), index


def photo_like(random: np.random.Generator, width: int = 500, height: int = 375) -> Image.Image:
    """RGB: a sum of smooth structure at several scales, with grain."""
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    for step, strength in ((100, 60), (30, 35), (8, 14)):
        coarse = random.normal(0, strength, (height // step + 2, width // step + 2, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[:, :, channel] += np.asarray(layer)
    pixels += random.normal(0, 5, pixels.shape)
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


def make_jpegs(folder: Path, count: int) -> None:
    """`count` JPEG files in ten class folders."""
    random = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"class{index % 10}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo_like(random).save(path, quality=87)
    mean_size = statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg"))
    print(f"{count} JPEG files of 500 x 375 pixels, {mean_size / 1000:.0f} kB on average")


def from_files(folder: Path) -> ImageDataset:
    """The JPEG files as a dataset of this project, with its cache in `folder`."""
    return load_data("folder", folder, Options(num_query=10)).database


def from_memory(pixels: np.ndarray) -> ImageDataset:
    """uint8 [n, h, w, 3] as a dataset of this project."""
    source = MemoryPixels(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    rows, labels = np.arange(len(pixels)), torch.zeros(len(pixels), 10)
    return ImageDataset(source, rows, labels, IMAGE_SIZE, shorter_side_for(IMAGE_SIZE))


def serve(connection: Connection, images: str, folder: Path, count: int, keep: bool) -> None:
    """A process: makes one pass in each way that it receives, and sends images per second."""
    if keep:
        keep_freed_memory()
    pixels = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    items = sorted(folder.rglob("*.jpg")) if images == IMAGES[0] else pixels
    database = from_files(folder) if images == IMAGES[0] else from_memory(pixels)
    threads = torch.get_num_threads()
    while True:
        way = connection.recv()
        torch.set_num_threads(1 if way.endswith("1 thread") else threads)
        start = time.perf_counter()
        if way == "cold":
            for file in folder.glob("*.pixels*"):
                file.unlink()
            database = from_files(folder)
        if way.startswith("usual"):
            usual = UsualImages(items[:USUAL_IMAGES])
            made = sum(len(batch[0]) for batch in DataLoader(usual, batch_size=BATCH_SIZE, shuffle=True))
        else:
            rows, key = range(len(database)), (0, "benchmark")
            batches = train_batches(database, rows, batch_size=BATCH_SIZE, key=key, augment="crop-flip")
            made = sum(len(batch[0]) for batch in batches)
        connection.send(made / (time.perf_counter() - start))


def measure(images: str, count: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of each way in each round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if images == IMAGES[0]:
            make_jpegs(folder, count)
        with (
            worker(images, serve, images, folder, count, False) as plain,
            worker(images, serve, images, folder, count, True) as kept,
        ):
            ways = [way for way in WAYS if way != "cold" or images == IMAGES[0]]
            works = {way: partial(plain if way in DEFAULTS else kept, way) for way in ways}
            return in_turn(works, rounds, warm_up=2)  # until the file cache and the allocators are warm


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser(prog=PROGRAM, description="Images per second of the data pipeline, compared with the usual way.")
    parser.add_argument("--quick", action="store_true", help="fewer images; results/ does not change")
    parser.add_argument("--rounds", type=bounded(int, 1), default=5, help="rounds that count [5]")
    given = parser.parse_args()
    about = {
        "rounds": given.rounds,
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": Image.__version__,
    }
    rows = []
    for images, count in zip(IMAGES, (128, 600) if given.quick else (320, 1200), strict=True):
        speeds = measure(images, count, given.rounds)
        # On a busy machine two threads that wait for each other can be slower than one: compare with the faster.
        usual = max((speeds[way] for way in DEFAULTS), key=statistics.median)
        for way, values in speeds.items():
            ratio = statistics.median(value / base for value, base in zip(values, usual, strict=True))
            rows.append(
                {
                    "images": images,
                    "way": way,
                    "images/s (median)": f"{statistics.median(values):.0f}",
                    "min": f"{min(values):.0f}",
                    "max": f"{max(values):.0f}",
                    "times the usual way": f"{ratio:.1f}",
                }
            )
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if not given.quick:
        write_results(RESULTS / "data_pipeline.csv", [row | about for row in rows])


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, main))
