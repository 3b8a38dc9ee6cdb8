"""Images per second of the data pipeline, beside the usual way: Pillow and torchvision, one image at a time.

    python -m benchmarks.data_pipeline [--quick] [--rounds 5]

All ways make batches of 64 training images of 224 × 224 (RandomResizedCrop, mirror image, normalised) from the same
images, in turn in one run. A round gives images / seconds; the table has the median of the rounds. The JPEG files have
500 × 375 pixels and are made here: smooth structure with film grain, with about as many bytes as photos.

- usual way: a Dataset that opens the file with Pillow, torchvision transforms, DataLoader with 0 workers.
- cold: `load_data` of the new dataset (which decodes every image into the cache) and one pass.
- warm: a pass when the cache exists.
Threads: as many as torch uses by default (one per processor); "1 thread" has one. The ratio is to the usual way with
the faster of the two numbers of threads. The usual way takes only the first 128 images: its speed does not depend on
the number of images, and on a busy machine it is slow.

Two processes take turns. That of the usual way has the defaults of the C library. Ours keeps freed memory, as run.py
does; the line "usual way, freed memory kept" shows the effect of this alone.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data import ImageDataset, Options, load_data
from data.data_loader import train_batches
from data.pixels import MemoryPixels
from data.transform import IMAGENET_MEAN, IMAGENET_STD, shorter_side_for
from utils.command import Parser, bounded, run_command
from utils.devices import keep_freed_memory

Ways: TypeAlias = dict[str, Callable[[], int]]

NAME = "python -m benchmarks.data_pipeline"
BATCH_SIZE = 64
IMAGE_SIZE = 224
USUAL_IMAGES = 128
RESULTS = Path(__file__).resolve().parent.parent / "results" / "data_pipeline.csv"


class UsualImages(Dataset[tuple[torch.Tensor, int]]):
    """Opens and transforms one Pillow image at a time."""

    def __init__(self, items: Sequence[Path] | np.ndarray) -> None:
        """`items` are JPEG files, or pixels in memory as in torchvision's CIFAR10, uint8 [n, h, w, 3]."""
        self.items = items
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(IMAGE_SIZE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        item = self.items[index]
        if isinstance(item, Path):
            with Image.open(item) as image:
                return self.transform(image.convert("RGB")), index
        return self.transform(Image.fromarray(item)), index


def consume(batches: Iterable[Sequence[torch.Tensor]]) -> int:
    """Take every batch as a training step would; returns the number of images."""
    return sum(len(batch[0]) for batch in batches)


def usual(items: Sequence[Path] | np.ndarray) -> int:
    """A pass of the usual way; returns the number of images."""
    return consume(DataLoader(UsualImages(items[:USUAL_IMAGES]), batch_size=BATCH_SIZE, shuffle=True))


def ours(database: ImageDataset) -> int:
    """A pass of this project; returns the number of images."""
    rows = range(len(database))
    return consume(train_batches(database, rows, batch_size=BATCH_SIZE, key=(0, "benchmark"), augment="crop-flip"))


def with_one_thread(work: Callable[[], int]) -> int:
    """`work()` with one torch thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


def ways_of(items: Sequence[Path] | np.ndarray, database: ImageDataset) -> Ways:
    """The ways that both kinds of images have."""
    return {
        "usual way": lambda: usual(items),
        "usual way, 1 thread": lambda: with_one_thread(lambda: usual(items)),
        "usual way, freed memory kept": lambda: usual(items),
        "warm": lambda: ours(database),
        "warm, 1 thread": lambda: with_one_thread(lambda: ours(database)),
    }


def photo_like(random: np.random.Generator) -> Image.Image:
    """500 × 375 RGB: a sum of smooth structure at several scales, with grain."""
    pixels = np.zeros((375, 500, 3), dtype=np.float32)
    for step, strength in ((100, 60), (30, 35), (8, 14)):
        coarse = random.normal(0, strength, (375 // step + 2, 500 // step + 2, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel]).resize((500, 375), Image.Resampling.BICUBIC)
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


def jpeg_ways(folder: Path, count: int) -> Ways:
    """The ways with image files."""

    def database() -> ImageDataset:
        return load_data("folder", folder, Options(num_query=10)).database

    def cold() -> int:
        for file in folder.glob("*.pixels*"):
            file.unlink()
        return ours(database())

    return {"cold": cold, **ways_of(sorted(folder.rglob("*.jpg")), database())}


def small_ways(folder: Path, count: int) -> Ways:
    """The ways with `count` images in memory, of the size of CIFAR-10's."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    source = MemoryPixels(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    labels = torch.zeros(count, 10)
    return ways_of(pixels, ImageDataset(source, np.arange(count), labels, IMAGE_SIZE, shorter_side_for(IMAGE_SIZE)))


IMAGES = {"JPEG 500x375": jpeg_ways, "CIFAR-10 size": small_ways}


def serve(images: str, folder: Path, count: int, keep: bool, connection: Connection) -> None:
    """A process: sends the names of its ways, then runs one for each name received and sends images per second."""
    if keep:
        keep_freed_memory()
    ways = IMAGES[images](folder, count)
    connection.send(list(ways))
    while name := connection.recv():
        start = time.perf_counter()
        made = ways[name]()
        connection.send(made / (time.perf_counter() - start))


@contextmanager
def process(images: str, folder: Path, count: int, keep: bool) -> Iterator[Connection]:
    """The connection to a process that runs `serve`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=serve, args=(images, folder, count, keep, there), daemon=True)
    worker.start()
    there.close()
    yield here
    here.send("")
    worker.join()


def measure(images: str, folder: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of each way, `rounds` times in turn after two rounds that do not count."""
    with process(images, folder, count, keep=False) as plain, process(images, folder, count, keep=True) as kept:
        names = plain.recv()
        kept.recv()
        speeds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(2 + rounds):
            for name in names:
                one = plain if name in ("usual way", "usual way, 1 thread") else kept
                one.send(name)
                value = one.recv()
                if turn >= 2:  # before that, the file cache and the allocators are not warm
                    speeds[name].append(value)
    return speeds


def work() -> None:
    """Measure, print and write the results."""
    parser = Parser(prog=NAME, description="Images per second of the data pipeline, beside the usual way.")
    parser.add_argument("--quick", action="store_true", help="fewer images; results/ does not change")
    parser.add_argument("--rounds", type=bounded(int, 1), default=5, help="rounds that count [5]")
    arguments = parser.parse_args()
    rows = []
    for images, count in zip(IMAGES, (128, 600) if arguments.quick else (320, 1200), strict=True):
        with tempfile.TemporaryDirectory() as folder:
            if images == "JPEG 500x375":
                make_jpegs(Path(folder), count)
            speeds = measure(images, Path(folder), count, arguments.rounds)
        # On a busy machine two threads that wait for each other can be slower than one: compare with the faster.
        usual_speeds = max(speeds["usual way"], speeds["usual way, 1 thread"], key=statistics.median)
        for name, values in speeds.items():
            ratio = statistics.median(value / base for value, base in zip(values, usual_speeds, strict=True))
            three = (f"{value:.0f}" for value in (statistics.median(values), min(values), max(values)))
            rows.append([images, name, *three, f"{ratio:.1f}"])
    header = ["collection", "way", "images/s (median)", "min", "max", "times the usual way"]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    about = {
        "rounds": arguments.rounds,
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": Image.__version__,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if not arguments.quick:
        with RESULTS.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*header, *about])
            writer.writerows([*row, *about.values()] for row in rows)


if __name__ == "__main__":
    sys.exit(run_command(NAME, work))
