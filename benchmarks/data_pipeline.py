"""Images a second of the data pipeline, beside the usual way: Pillow and torchvision, one image at a time.

    python benchmarks/data_pipeline.py [--quick]

Every way makes the same batches of 64 training images of 224 x 224 (RandomResizedCrop, mirror image, normalised) from
the same images, in turn within one run; a round's figure is images / seconds, the table has the median of the rounds.
The JPEG files are 500 x 375 pixels, made here: smooth structure with film grain, about as many bytes as photos have.

- usual way: Dataset that opens the file with Pillow, torchvision transforms, DataLoader with 0 workers.
- cold: `load_data` of the new collection (which decodes every image into the cache) and one pass over it.
- warm: a pass when the cache is there.
Threads: what torch uses by default (one a processor); a second figure has one thread only. The ratio is to the usual
way with the number of threads that is the faster one for it. The usual way takes the first 128 images only: its images
a second do not depend on how many there are, and on a busy machine it is slow.

Two processes take turns. The usual way's has the C library's defaults. Ours keeps freed memory, as run.py has it do;
what that alone does for the usual way is the line "usual way, freed memory kept".
"""

from __future__ import annotations

import argparse
import csv
import logging
import multiprocessing
import os
import pickle
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import Options, load_data
from data.data_loader import train_batches
from data.transform import IMAGENET_MEAN, IMAGENET_STD
from utils.devices import keep_freed_memory

Ways: TypeAlias = dict[str, Callable[[], int]]

BATCH_SIZE = 64
USUAL_IMAGES = 128
RESULTS = Path(__file__).resolve().parent.parent / "results" / "data_pipeline.csv"


def photo_like(random: np.random.Generator) -> Image.Image:
    """500 x 375 RGB: a sum of smooth structure at several scales, with grain."""
    pixels = np.zeros((375, 500, 3), dtype=np.float32)
    for step, strength in ((100, 60), (30, 35), (8, 14)):
        coarse = random.normal(0, strength, (375 // step + 2, 500 // step + 2, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel]).resize((500, 375), Image.Resampling.BICUBIC)
            pixels[:, :, channel] += np.asarray(layer)
    pixels += random.normal(0, 5, pixels.shape)
    return Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))


class UsualFiles(Dataset):
    """One JPEG opened, decoded and transformed at a time."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = usual_transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), index


class UsualArrays(Dataset):
    """CIFAR-10's way: pixels in memory, made a Pillow image and transformed one at a time."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels  # uint8 [n, 32, 32, 3]
        self.transform = usual_transform()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), index


def usual_transform() -> Callable[[Image.Image], torch.Tensor]:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def consume(batches: Iterable) -> int:
    """Take every batch as a training step would; returns the number of images."""
    return sum(len(batch[0]) for batch in batches)


def timed(work: Callable[[], int]) -> float:
    """Images a second."""
    start = time.perf_counter()
    images = work()
    return images / (time.perf_counter() - start)


def with_threads(threads: int, work: Callable[[], int]) -> int:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


def make_jpegs(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"class{index % 10}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo_like(random).save(path, quality=87)
    mean_size = statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg"))
    print(f"{count} JPEG files of 500 x 375 pixels, {mean_size / 1000:.0f} kB on average")


def jpeg_ways(folder: Path) -> Ways:
    paths = sorted(folder.rglob("*.jpg"))

    def usual() -> int:
        return consume(DataLoader(UsualFiles(paths[:USUAL_IMAGES]), batch_size=BATCH_SIZE, shuffle=True))

    def one_pass() -> int:
        database = load_data("folder", folder, Options(num_query=10)).database
        return ours(database, list(range(len(database))))

    def cold() -> int:
        for file in folder.glob("*.pixels*"):
            file.unlink()
        return one_pass()

    database = load_data("folder", folder, Options(num_query=10)).database
    rows = list(range(len(database)))
    return {
        "usual way": usual,
        "usual way, 1 thread": lambda: with_threads(1, usual),
        "usual way, freed memory kept": usual,
        "cold": cold,
        "warm": lambda: ours(database, rows),
        "warm, 1 thread": lambda: with_threads(1, lambda: ours(database, rows)),
    }


def make_cifar10(folder: Path, count: int) -> None:
    random = np.random.default_rng(1)
    target = folder / "cifar-10-batches-py"
    target.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = random.integers(0, 256, (count // 6, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": [index % 10 for index in range(len(data))]}
        (target / name).write_bytes(pickle.dumps(batch))


def cifar10_ways(folder: Path) -> Ways:
    database = load_data("cifar-10", folder, Options(num_query=10)).database
    rows = list(range(len(database)))
    pixels = np.stack([image.permute(1, 2, 0).numpy() for image in database.pixels(rows)])

    def usual() -> int:
        return consume(DataLoader(UsualArrays(pixels[:USUAL_IMAGES]), batch_size=BATCH_SIZE, shuffle=True))

    return {
        "usual way": usual,
        "usual way, 1 thread": lambda: with_threads(1, usual),
        "usual way, freed memory kept": usual,
        "warm": lambda: ours(database, rows),
        "warm, 1 thread": lambda: with_threads(1, lambda: ours(database, rows)),
    }


def ours(database, rows: list[int]) -> int:
    return consume(train_batches(database, rows, batch_size=BATCH_SIZE, key=(0, "benchmark"), augment="crop-flip"))


COLLECTIONS = {"JPEG 500x375": (make_jpegs, jpeg_ways), "CIFAR-10 size": (make_cifar10, cifar10_ways)}


def work(collection: str, folder: Path, keep: bool, connection: Connection) -> None:
    """A process: tells its ways, then goes one each time it is asked and answers with images a second."""
    logging.getLogger("data").setLevel(logging.ERROR)
    if keep:
        keep_freed_memory()
    ways = COLLECTIONS[collection][1](folder)
    connection.send(list(ways))
    while name := connection.recv():
        connection.send(timed(ways[name]))


@contextmanager
def process(collection: str, folder: Path, keep: bool) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=work, args=(collection, folder, keep, theirs), daemon=True)
    worker.start()
    theirs.close()
    yield ours
    ours.send("")
    worker.join()


def measure(collection: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Images a second of each way, `rounds` times in turn after two rounds that do not count."""
    with process(collection, folder, keep=False) as plain, process(collection, folder, keep=True) as kept:
        names = plain.recv()
        kept.recv()
        figures: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(2 + rounds):
            for name in names:
                one = plain if name in ("usual way", "usual way, 1 thread") else kept
                one.send(name)
                value = one.recv()
                if turn >= 2:  # before, file cache and allocators
                    figures[name].append(value)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second of the data pipeline, beside the usual way.")
    parser.add_argument("--quick", action="store_true", help="fewer images; results/ is left alone")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    jpegs, small = (128, 600) if arguments.quick else (320, 1200)
    rows = []
    for collection, count in zip(COLLECTIONS, (jpegs, small), strict=True):
        folder = Path(tempfile.mkdtemp())
        try:
            COLLECTIONS[collection][0](folder, count)
            figures = measure(collection, folder, arguments.rounds)
        finally:
            shutil.rmtree(folder)
        # On a busy machine two threads that wait for each other can be slower than one: compare with the better.
        usual = max(figures["usual way"], figures["usual way, 1 thread"], key=statistics.median)
        for name, values in figures.items():
            ratio = statistics.median(value / base for value, base in zip(values, usual, strict=True))
            rows.append([collection, name, f"{statistics.median(values):.0f}", f"{min(values):.0f}",
                         f"{max(values):.0f}", f"{ratio:.1f}"])  # fmt: skip
    header = ["collection", "way", "images/s (median)", "min", "max", "times the usual way"]
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"n = {arguments.rounds} rounds, {os.cpu_count()} processors, torch {torch.__version__}, "
          f"torchvision {torchvision.__version__}, Pillow {Image.__version__}")  # fmt: skip
    if not arguments.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*header, "rounds", "processors", "machine", "torch", "torchvision", "pillow"])
            about = [arguments.rounds, os.cpu_count(), platform.machine(), torch.__version__,
                     torchvision.__version__, Image.__version__]  # fmt: skip
            writer.writerows([*row, *about] for row in rows)


if __name__ == "__main__":
    main()
