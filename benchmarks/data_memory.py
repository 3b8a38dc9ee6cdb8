"""Memory that a collection of 190,000 listed images takes in the process, over what Python and torch take.

    python benchmarks/data_memory.py [--images 190000] [--quick]

Makes a list of that length over 1,000 small JPEG files (each named many times), with 21 labels a row; builds the cache,
evaluates every image once and trains one pass over 10,500. Prints resident memory after the imports, the peak (VmHWM),
and the size of the cache, which is read without becoming resident.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import Options, load_data
from data.data_loader import eval_batches, train_batches

RESULTS = Path(__file__).resolve().parent.parent / "results" / "data_memory.csv"


def status(field: str) -> float:
    """A line of /proc/self/status (Linux), in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(field)


def make_collection(root: Path, images: int) -> None:
    random = np.random.default_rng(0)
    (root / "images").mkdir()
    for index in range(1000):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(root / "images" / f"{index}.jpg", quality=85)
    labels = (random.random((images, 21)) < 0.1).astype(int)
    for stem, first, last in (("database", 0, images - 2100), ("query", images - 2100, images)):
        names = "".join(f"images/{index % 1000}.jpg\n" for index in range(first, last))
        (root / f"{stem}_img.txt").write_text(names)
        (root / f"{stem}_label.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in labels[first:last]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a long list of images.")
    parser.add_argument("--images", type=int, default=190_000)
    parser.add_argument("--quick", action="store_true", help="20,000 images; results/ is left alone")
    arguments = parser.parse_args()
    images = 20_000 if arguments.quick else arguments.images
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        before = status("VmRSS")
        make_collection(root, images)  # what it leaves behind counts against us
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
        row = {
            "images": images,
            "cache (MB)": round(cache.stat().st_size / 1e6),
            "resident before (MB)": round(before),
            "resident once loaded (MB)": round(loaded),
            "peak (MB)": round(status("VmHWM")),
            "peak over before (MB)": round(status("VmHWM") - before),
            "building the cache (s)": round(built),
        }
    for name, value in row.items():
        print(f"{name}: {value:,}")
    if not arguments.quick:
        with RESULTS.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([row.keys(), row.values()])


if __name__ == "__main__":
    main()
