"""Images per second from JPEG files to codes, beside plain torch and Pillow; and the mAP of each precision.

    python -m benchmarks.encode [--quick] [--rounds 5]
    python -m benchmarks.encode --map RUN [--root DIR]

The first command encodes photos that are made here, of 500 × 375 and of 4000 × 3000 pixels, with AlexNet (random
weights, 224 pixels, 64 bits):

- plain torch: Pillow, torchvision's transforms and torch in channels-last, one image after another and batches of 64.
- float32, int8: `search.encode.encode_files` with a model of that precision.
- decode: only the decoding and resizing of `encode_files`.

Processor time is that of all threads. It changes less than the images per second when other programs use the machine.

The second command encodes the queries and the database of a run's dataset with its model in each precision and compares
the mAP (all ranks, expected over ties). `--root` is the folder of the images, where it is not that of the run.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from benchmarks.data_pipeline import photo_like
from benchmarks.timing import RESULTS, in_turn, print_table, write_results
from data import ImageDataset, Options, load_data
from data.parallel import in_parallel
from data.prepare import prepare_image
from data.samples import sample_images
from data.windows import IMAGENET_MEAN, IMAGENET_STD, eval_image, shorter_side_for
from modules import AlexNetHash
from modules.trained import load_network
from search.encode import encode_files
from search.export import NUM_CALIBRATION, NUM_COMPARED, converted, differing_bits, packed, to_onnx
from search.model import Model
from utils.command import MOST_PIXELS, Parser, bounded, run_command
from utils.evaluate import mean_average_precision
from utils.runs import read_config

PROGRAM = "python -m benchmarks.encode"
SIZE = 224
PHOTOS = {"JPEG 500x375": (500, 375, 256), "JPEG 4000x3000": (4000, 3000, 24)}  # width, height, number
USUAL = transforms.Compose(
    [
        transforms.Resize(shorter_side_for(SIZE)),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
)


def plain_torch(network: nn.Module, paths: list[str]) -> None:
    """Codes in the plain way."""
    with torch.inference_mode():
        for start in range(0, len(paths), 64):
            images = []
            for path in paths[start : start + 64]:
                with Image.open(path) as image:
                    images.append(USUAL(image.convert("RGB")))
            batch = torch.stack(images).to(memory_format=torch.channels_last)
            np.packbits(network(batch)[1].numpy() >= 0, axis=1)


def only_decode(model: Model, paths: list[str]) -> None:
    """What `encode_files` does before the network."""
    threads = os.cpu_count() or 1
    work = partial(prepare_image, image_size=model.image_size, shorter_side=model.shorter_side)
    for _ in in_parallel(work, paths, threads=threads, count=len(paths), bar="Decoding"):
        pass


def timed(work: Callable[[list[str]], object], paths: list[str]) -> tuple[float, float]:
    """Images per second, and milliseconds of processor time per image."""
    start, processor = time.perf_counter(), time.process_time()
    work(paths)
    return len(paths) / (time.perf_counter() - start), 1e3 * (time.process_time() - processor) / len(paths)


def measure_speed(rounds: int, quick: bool) -> None:
    """The first command."""
    torch.manual_seed(0)
    settings = {"backbone": "alexnet", "code_length": 64, "image_size": SIZE, "dataset": "folder", "method": "none"}
    network = packed(AlexNetHash(64, weights=None).requires_grad_(False), settings)
    model = Model.from_bytes(to_onnx(network), "float32", "cpu")
    plain = network.network.to(memory_format=torch.channels_last)
    rows = []
    for name, (width, height, count) in PHOTOS.items():
        count = count // 8 if quick else count
        random = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, f"{number}.jpg") for number in range(count)]
            for path in paths:
                photo_like(random, width, height).save(path, quality=87)
            print(f"{name}: {count} files of {statistics.mean(map(os.path.getsize, paths)) / 1e3:,.0f} kB on average")
            some = sample_images({}, SIZE, model.shorter_side, NUM_CALIBRATION, paths, MOST_PIXELS)
            small = Model.from_bytes(converted(model, "int8", some), "int8", "cpu")
            works: dict[str, Callable[[list[str]], object]] = {
                "plain torch": partial(plain_torch, plain),
                "float32": lambda paths: list(encode_files(model, paths)),
                "int8": lambda paths, small=small: list(encode_files(small, paths)),  # type: ignore[misc]
                "decode": partial(only_decode, model),
            }
            found = in_turn({way: partial(timed, work, paths) for way, work in works.items()}, rounds, warm_up=1)
        usual = [speed for speed, _ in found["plain torch"]]
        for way, pairs in found.items():
            speeds, processor = zip(*pairs, strict=True)
            rows.append(
                {
                    "images": name,
                    "way": way,
                    "images/s (median)": f"{statistics.median(speeds):.1f}",
                    "min": f"{min(speeds):.1f}",
                    "max": f"{max(speeds):.1f}",
                    "times plain torch": f"{statistics.median(np.divide(speeds, usual)):.2f}",
                    "processor ms per image": f"{statistics.median(processor):.2f}",
                }
            )
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    about = {"rounds": rounds, "processors": os.cpu_count(), "load": f"{os.getloadavg()[0]:.1f}"}
    about |= {"machine": platform.machine(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    if not quick:
        write_results(RESULTS / "encode.csv", [row | about for row in rows])


def codes_of(half: ImageDataset, model: Model) -> torch.Tensor:
    """The codes of a dataset, -1 and +1: float32 [n, K]."""

    def encode(rows: np.ndarray) -> np.ndarray:
        stored = (half.source.read(row, 0, int(half.source.sizes[row, 0])) for row in rows.tolist())
        return model.codes(np.stack([eval_image(pixels, model.image_size, model.shorter_side) for pixels in stored]))

    parts = np.array_split(half.rows, -(-len(half) // 32))
    packed: Iterator[np.ndarray] = in_parallel(
        encode, parts, threads=os.cpu_count() or 1, count=len(parts), bar="Encoding", images=32
    )
    bits = np.unpackbits(np.concatenate(list(packed)), axis=1, count=model.code_length)
    return torch.from_numpy(bits).float() * 2 - 1


def measure_map(run: Path, root: str | None) -> None:
    """The second command."""
    settings = read_config(run)["settings"]
    options = Options.of(settings | {"cache": "off"})
    split = load_data(settings["dataset"], root or settings["root"], options)
    network = packed(*load_network(run))
    exported = Model.from_bytes(to_onnx(network), str(run), "cpu")
    sizes = exported.image_size, exported.shorter_side
    images = sample_images(settings, *sizes, NUM_COMPARED, [root] if root else [], MOST_PIXELS)
    rows = []
    for precision in ("float32", "float16", "int8"):
        model = exported
        if precision != "float32":
            model = Model.from_bytes(converted(exported, precision, images), precision, "cpu")
        query, database = codes_of(split.query, model), codes_of(split.database, model)
        found = mean_average_precision(query, database, split.query.labels, split.database.labels)
        differing = differing_bits(network, model, images)
        share = differing.sum() / (len(images) * model.code_length)
        rows.append([precision, f"{len(model.content) / 1e6:.1f}", f"{share:.3%}", f"{found:.4f}"])
    print_table(["precision", "MB", "bits that differ from torch", "mAP"], rows)


def main() -> None:
    parser = Parser(prog=PROGRAM, description="Speed from image files to codes, and the mAP of each precision.")
    parser.add_argument("--quick", action="store_true", help="an eighth of the images, and no file is written")
    parser.add_argument("--rounds", type=bounded(int, 1), default=5, metavar="N", help="rounds that count [5]")
    parser.add_argument("--map", type=Path, metavar="RUN", help="the mAP of the model of a run in each precision")
    parser.add_argument("--root", metavar="DIR", help="with --map: the folder of the images")
    options = parser.parse_args()
    if options.map is None:
        measure_speed(options.rounds, options.quick)
    else:
        measure_map(options.map, options.root)


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, main))
