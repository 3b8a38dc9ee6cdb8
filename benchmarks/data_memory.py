"""Memory of the process with 190,000 listed images, beyond what Python and torch need.

    python -m benchmarks.data_memory [--images 190000] [--quick]

Makes a list of this length of 1,000 small JPEG files (each is named many times), with 21 labels per row; builds the
cache, evaluates every image once, and makes one training pass over 10,500. Prints the resident memory after the imports
and at its peak (VmHWM), and the size of the cache, which is read without becoming resident. Linux only.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data import Options, load_data
from data.data_loader import eval_batches, train_batches
from utils.command import Parser, bounded, run_command

NAME = "python -m benchmarks.data_memory"
RESULTS = Path(__file__).resolve().parent.parent / "results" / "data_memory.csv"
QUERIES = 2100


def status(field: str) -> float:
    """A line of /proc/self/status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def make_lists(root: Path, images: int) -> None:
    """The image files and the four lists."""
    random = np.random.default_rng(0)
    (root / "images").mkdir()
    for index in range(1000):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(root / "images" / f"{index}.jpg", quality=85)
    labels = (random.random((images, 21)) < 0.1).astype(int)
    for stem, first, last in (("database", 0, images - QUERIES), ("query", images - QUERIES, images)):
        names = "".join(f"images/{index % 1000}.jpg\n" for index in range(first, last))
        (root / f"{stem}_img.txt").write_text(names)
        (root / f"{stem}_label.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in labels[first:last]))


def measure(images: int) -> dict[str, int]:
    """The row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        before = status("VmRSS")
        make_lists(root, images)  # the memory that this leaves behind counts, too
        start = time.perf_counter()
        split = load_data("lists", root, Options(image_size=64))
        built = time.perf_counter() - start
        loaded = status("VmRSS")
        for _ in eval_batches(split.database, batch_size=64):
            pass
        sample = torch.randperm(len(split.database), generator=torch.Generator().manual_seed(0))[:10_500]
        for _ in train_batches(split.database, sample, batch_size=64, key=(0,), augment="crop-flip"):
            pass
        (cache,) = root.glob("*.pixels")
        return {
            "images": images,
            "cache (MB)": round(cache.stat().st_size / 1e6),
            "resident before (MB)": round(before),
            "resident once loaded (MB)": round(loaded),
            "peak (MB)": round(status("VmHWM")),
            "peak over before (MB)": round(status("VmHWM") - before),
            "building the cache (s)": round(built),
        }


def work() -> None:
    """Measure, print and write the results."""
    parser = Parser(prog=NAME, description="Memory of the process with a long list of images.")
    parser.add_argument("--images", type=bounded(int, QUERIES + 1), default=190_000, help="length of the list [190000]")
    parser.add_argument("--quick", action="store_true", help="20,000 images; results/ does not change")
    arguments = parser.parse_args()
    row = measure(20_000 if arguments.quick else arguments.images)
    for name, value in row.items():
        print(f"{name}: {value:,}")
    if not arguments.quick:
        with RESULTS.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([row.keys(), row.values()])


if __name__ == "__main__":
    sys.exit(run_command(NAME, work))
