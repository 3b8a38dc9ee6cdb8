"""Memory of the process with a list of 190,000 images, beyond what Python and torch need (docs/datasets.md; Linux).

    python -m benchmarks.data_memory [--quick]

The list names 1,000 small JPEG files many times, with 21 labels per row. The cache is built, every image is evaluated
once, and one training pass over 10,500 is made. The cache itself is read without becoming resident.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import RESULTS, memory, write_results
from data import Options, load_data
from data.data_loader import eval_batches, train_batches
from utils.command import Parser, run_command

PROGRAM = "python -m benchmarks.data_memory"
QUERIES = 2100


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


def measure(root: Path, images: int) -> dict[str, int]:
    """The row of results/data_memory.csv."""
    before = memory("VmRSS")
    make_lists(root, images)  # the memory that this leaves behind counts, too
    start = time.perf_counter()
    database = load_data("lists", root, Options(image_size=64)).database
    built = time.perf_counter() - start
    loaded = memory("VmRSS")
    for _ in eval_batches(database, batch_size=64):
        pass
    sample = torch.randperm(len(database), generator=torch.Generator().manual_seed(0))[:10_500]
    for _ in train_batches(database, sample, batch_size=64, key=(0,), augment="crop-flip"):
        pass
    (cache,) = root.glob("*.pixels")
    return {
        "images": images,
        "cache (MB)": round(cache.stat().st_size / 1e6),
        "resident before (MB)": round(before / 1e6),
        "resident once loaded (MB)": round(loaded / 1e6),
        "peak (MB)": round(memory("VmHWM") / 1e6),
        "peak over before (MB)": round((memory("VmHWM") - before) / 1e6),
        "building the cache (s)": round(built),
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = Parser(prog=PROGRAM, description="Memory of the process with a long list of images.")
    parser.add_argument("--quick", action="store_true", help="20,000 images; results/ does not change")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), 20_000 if given.quick else 190_000)
    for name, value in row.items():
        print(f"{name}: {value:,}")
    if not given.quick:
        write_results(RESULTS / "data_memory.csv", [row])


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, main))
