"""What a GPU is worth: training steps against the plain step and the data sheet, and one whole schedule of CIFAR-10.

    python -m benchmarks.gpu -o results/gpu.csv                  # about eight minutes on one H100
    python -m benchmarks.gpu --rows plain,ours --iterations 0    # two rows, no schedule

The rows are those of benchmarks/step.py. The schedule is that of the papers for one code length: 50 iterations of three
passes over 5,000 rows at 224 pixels, with all evaluations, over 60,000 random images of the shape of CIFAR-10 (the time
does not depend on what they show), in the fastest of the settings that change no formula: bfloat16 and CUDA graphs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.step import BATCH, BITS, H100, MAINS, measure, numbers
from benchmarks.timing import print_table, write_results
from data import Split
from data.image_dataset import split_in_memory
from training.run_folder import RunFolder, device_name
from training.settings import Settings
from utils.command import Parser, bounded, run_command
from utils.devices import choose_device, keep_freed_memory
from utils.files import require_place

PROGRAM = "python -m benchmarks.gpu"
ROWS = ("plain", "ours", "no-tf32", "tf32", "tf32-graphs", "bfloat16", "bfloat16-graphs", "compile")
CPU_ROWS = ("plain", "ours", "bfloat16")
IMAGES, SIDE = 60_000, 32  # CIFAR-10
COLUMNS = ("method", "what", "image_size", "seconds", "fastest", "slowest", "images_per_second", "plain_over_row",
           "share_of_h100_floor", "peak_mib", "device", "torch")  # fmt: skip


def floor(method: str, image_size: int, row: str) -> float:
    """The least seconds of a step on an H100: arithmetic, then memory traffic (docs/performance.md)."""
    _, operations, parameter_bytes, activation_bytes = numbers(method, image_size)
    rate = H100[row.partition("-")[0] if row.startswith(("bfloat16", "tf32")) else "float32"]
    return operations / rate + (parameter_bytes + activation_bytes) / H100["bytes"]


def step_rows(
    method: str, image_size: int, rows: list[str], rounds: int, machine: dict[str, str]
) -> list[dict[str, Any]]:
    """A line for each row of benchmarks/step.py: the median step, its speed, and how far it is from the floor."""
    measured = measure(method, image_size, rows, rounds)
    plain = statistics.median(taken for taken, _ in measured[rows[0]])
    lines = []
    for row, steps in measured.items():
        times = [taken for taken, _ in steps]
        median = statistics.median(times)
        lines.append({
            "method": method, "what": row, "image_size": image_size, "seconds": f"{median:.5f}",
            "fastest": f"{min(times):.5f}", "slowest": f"{max(times):.5f}",
            "images_per_second": f"{BATCH / median:.0f}", "plain_over_row": f"{plain / median:.2f}",
            "share_of_h100_floor": f"{floor(method, image_size, row) / median:.2f}",
            "peak_mib": f"{steps[-1][1] / 2**20:.0f}", **machine,
        })  # fmt: skip
    return lines


def random_cifar10(image_size: int, num_images: int) -> Split:
    """Random pixels with the shape, the classes and the split of CIFAR-10."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (num_images, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    names = [str(label) for label in range(10)]
    return split_in_memory("cifar-10", pixels, np.arange(num_images) % 10, names, num_images // 60, 0, image_size)


def schedule(method: str, image_size: int, iterations: int, num_images: int, machine: dict[str, str]) -> dict[str, Any]:
    """A line for a whole run of one code length, from the first batch to the last evaluation."""
    device = choose_device("auto")
    with tempfile.TemporaryDirectory() as logs:
        settings = Settings.for_dataset(
            "cifar-10", method=method, image_size=image_size, weights="none", max_iter=iterations, logs=logs,
            num_samples=min(5000, num_images // 2), save_iter=0,
            precision="bfloat16", cuda_graphs=device.type == "cuda",
        )  # fmt: skip
        split = random_cifar10(image_size, num_images)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        MAINS[method].train(RunFolder(settings, device), BITS, split)
        taken = time.perf_counter() - start
    seen = 3 * settings.num_samples * iterations
    peak = f"{torch.cuda.max_memory_allocated() / 2**20:.0f}" if device.type == "cuda" else ""
    what = f"schedule of {iterations} iterations"
    return dict.fromkeys(COLUMNS, "") | {
        "method": method, "what": what, "image_size": image_size, "seconds": f"{taken:.1f}",
        "images_per_second": f"{seen / taken:.0f}", "peak_mib": peak, **machine,
    }  # fmt: skip


def main() -> None:
    """Measure what the command line names, print a table, and write the CSV."""
    parser = Parser(prog=PROGRAM, description="Times training on a GPU; see docs/performance.md.")
    parser.add_argument("--method", choices=list(MAINS), action="append", help="(default: both)")
    parser.add_argument("--image-size", type=bounded(int, 63), default=224, help="[%(default)s]")
    parser.add_argument("--rows", help=f"rows of benchmarks/step.py, separated by commas [{','.join(ROWS)}]")
    parser.add_argument("--rounds", type=bounded(int, 1), default=15, help="timed steps of each row [%(default)s]")
    parser.add_argument("--iterations", type=bounded(int, 0), default=50, help="of the schedule; 0: none [%(default)s]")
    parser.add_argument("--images", type=bounded(int, 600), default=IMAGES, help="of the schedule [%(default)s]")
    parser.add_argument("-o", "--output", type=Path, metavar="CSV", help="write all numbers to this file")
    given = parser.parse_args()
    if given.output is not None:
        require_place(given.output, "--output")
    keep_freed_memory()
    device = choose_device("auto")
    rows = given.rows.split(",") if given.rows else list(ROWS if device.type == "cuda" else CPU_ROWS)
    machine = {"device": device_name(device), "torch": torch.__version__}
    lines: list[dict[str, Any]] = []
    for method in given.method or MAINS:
        lines += step_rows(method, given.image_size, rows, given.rounds, machine)
    for method in (given.method or MAINS) if given.iterations else ():
        lines.append(schedule(method, given.image_size, given.iterations, given.images, machine))
    print(f"{machine['device']}, torch {machine['torch']}, images of {given.image_size}, batch {BATCH}\n")
    shown = [name for name in COLUMNS if name not in ("image_size", *machine)]
    print_table(shown, [[str(line[name]) for name in shown] for line in lines])
    if given.output is not None:
        write_results(given.output, lines)


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, main))
