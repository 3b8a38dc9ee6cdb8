"""How long a training step takes, beside a plain transcription of it and beside what the hardware allows.

    python -m benchmarks.step                        # both variants, images of 64 and 224, the first seven rows
    python -m benchmarks.step --method main_tomm --image-size 224 --rows plain,ours
    python -m benchmarks.step --numbers              # only the operations and bytes of a step, nothing is timed

Every row is a process of its own with its own networks; the processes take one step each in turn, `--rounds` times.
`plain` is tests/plain_step.py. The others run the main itself (main_*.train): what is timed is from the moment it
receives a mini-batch to the moment it asks for the next.

    plain          the yardstick: default Adam, TOMM's second pass with its graph, freed memory given back
    ours           the main as run.py starts it, float32
    bfloat16       the same with --precision bfloat16
    no-fused       ours, but the optimisers at their default in place of fused=True
    no-kept        ours, but freed memory is given back to the system after each step
    no-channels    ours, but weights and images in torch's default memory format
    compile        ours, with the networks under torch.compile
    foreach        ours, but the optimisers with foreach=True
    zeroed         ours, but gradients are filled with zeros and added to, not made anew
    need-weights   ours, but the attentions return their weights too
    onednn         ours, but the linear layers' products by oneDNN in place of torch's BLAS (CPU only)

The last four run only where `--rows` names them: a row takes about 3 GB of memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial, partialmethod
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import main_mmasia
import main_tomm
from data import Options, load_data
from modules import MLP, AlexNetHash, CycleNet, ReconstructionDiscriminator, all_in_one
from tests.plain_step import Networks, plain_step
from training.run_folder import RunFolder, device_name
from training.settings import Settings
from utils.devices import choose_device, keep_freed_memory

MAINS: dict[str, Any] = {"main_mmasia": main_mmasia, "main_tomm": main_tomm}
ROWS = ("plain", "ours", "bfloat16", "no-fused", "no-kept", "no-channels", "compile")
# By name only: with these all rows at once would take about 33 GB of memory.
MORE_ROWS = ("foreach", "zeroed", "need-weights", "onednn")
BITS, BATCH, CLASSES, GAMMA = 32, 64, 10, 10.0
WARM_UP = 3
# NVIDIA's data sheet of the H100 SXM: float32 outside the tensor cores, bfloat16 in them (dense), memory.
H100 = {"float32": 67e12, "bfloat16": 989e12, "bytes": 3.35e12}


def networks(method: str) -> list[nn.Module]:
    """model_image, model_label, model_cycle and, for TOMM, the discriminator, at random weights."""
    cycle = CycleNet(BITS, variant=method.removeprefix("main_"))
    built = [AlexNetHash(BITS, weights=None), MLP(CLASSES, BITS), cycle]
    return [*built, ReconstructionDiscriminator(BITS)] if method == "main_tomm" else built


def batch(image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """images [N, 3, S, S], labels [N, C], b [N, K]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, image_size, image_size, generator=generator)
    labels = torch.eye(CLASSES)[torch.randint(CLASSES, (BATCH,), generator=generator)]
    return images, labels, torch.randn(BATCH, BITS, generator=generator).sign()


# ---- What a step must do ----


def numbers(method: str, image_size: int) -> dict[str, float]:
    """Operations and bytes of one step, counted on networks without memory.

    Returns:
        parameters; operations: of matrix products and convolutions, forward and backward, a multiply-add as two
        (torch's counter over the plain step); parameter_bytes: float32 weights read in both passes, gradients written,
        Adam's reading of gradient, weight and two moments and its writing of the latter three, 40 bytes a parameter,
        and as much again of model_cycle's in TOMM, whose second pass also reads the other weights once;
        activation_bytes: each layer's output written and read, and the same of its gradient.
    """
    with torch.device("meta"):
        built = networks(method)
        images, labels, b = (torch.empty_like(tensor, device="meta") for tensor in batch(image_size))
    outputs = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal outputs
        outputs += output.numel() if isinstance(output, Tensor) else 0

    for network in built:
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
    step = Networks(*built)
    step.optimizers = {name: torch.optim.SGD([nn.Parameter(torch.zeros(1))]) for name in step.optimizers}
    with FlopCounterMode(display=False) as counter:
        plain_step(step, images, labels, b, GAMMA)
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in built]
    parameter_bytes = 40 * sum(sizes[:3])
    if method == "main_tomm":
        parameter_bytes += 40 * (sizes[2] + sizes[3]) + 4 * (sizes[0] + sizes[1])
    return {
        "parameters": sum(sizes),
        "operations": counter.get_total_flops(),
        "parameter_bytes": parameter_bytes,
        "activation_bytes": outputs * 4 * 4,
    }


def rates(device: torch.device) -> dict[str, float]:
    """What this machine reaches: operations a second of a large product, bytes a second of a copy."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.randn(n, 4096, device=device).to(dtype) for n in (1024, 4096))
        out = torch.empty(1024, 4096, device=device, dtype=dtype)
        seconds = fastest(lambda left=left, right=right, out=out: torch.mm(left, right.T, out=out), device)
        found[name] = 2 * 1024 * 4096 * 4096 / seconds
    source = torch.zeros(2**26, device=device)
    target = torch.zeros_like(source)
    found["bytes"] = 2 * source.numel() * 4 / fastest(lambda: target.copy_(source), device)
    return found


def fastest(work: Any, device: torch.device) -> float:
    """Seconds of the fastest of nine calls."""
    return min(clocked(work, device) for _ in range(9))


def clocked(work: Any, device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


# ---- The processes that step in turn ----


class Fed:
    """The one mini-batch again and again, each time the parent asks; tells it how long the step took."""

    def __init__(self, connection: Connection, device: torch.device, image_size: int, channels_last: bool) -> None:
        images, labels, _ = batch(image_size)
        form = torch.channels_last if channels_last else torch.contiguous_format
        self.batch = images.to(device).contiguous(memory_format=form), labels.to(device), torch.arange(BATCH)
        self.connection, self.device = connection, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            if not self.connection.recv():
                raise SystemExit
            start = time.perf_counter()
            yield self.batch
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.connection.send((time.perf_counter() - start, peak_memory(self.device)))


def peak_memory(device: torch.device) -> int:
    """Bytes: of the process, or on a GPU of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(row: str, method: str, image_size: int, device_flag: str, connection: Connection) -> None:
    """A process: takes a step each time it is asked."""
    device = choose_device(device_flag)
    torch.manual_seed(0)
    if row == "plain":
        step = Networks(*(network.to(device) for network in networks(method)))
        images, labels, b = (tensor.to(device) for tensor in batch(image_size))
        while connection.recv():
            seconds = clocked(lambda: plain_step(step, images, labels, b, GAMMA), device)
            connection.send((seconds, peak_memory(device)))
        return
    if row != "no-kept":
        keep_freed_memory()
    main = MAINS[method]
    main.train_batches = lambda *_, **__: Fed(connection, device, image_size, channels_last=row != "no-channels")
    if row in ("no-fused", "foreach"):
        adam = partial(torch.optim.Adam, foreach=True if row == "foreach" else None)
        torch.optim.Adam = lambda *arguments, fused, **options: adam(*arguments, **options)  # type: ignore
    if row == "zeroed":
        torch.optim.Adam.zero_grad = partialmethod(torch.optim.Optimizer.zero_grad, set_to_none=False)
    if row == "need-weights":
        all_in_one.attend = lambda layer, query_and_key, value: layer(query_and_key, query_and_key, value)[0]
    if row == "onednn":
        linear = functional.linear
        functional.linear = lambda x, weight, bias=None: linear(x.to_mkldnn(), weight, bias).to_dense()
    if row == "no-channels":
        image_network = main.image_network
        main.image_network = lambda *arguments, **options: InDefaultFormat(image_network(*arguments, **options))
    if row == "compile":
        compute = main.Precision.__call__
        compiled: dict[int, Any] = {}

        def call(self: Any, network: nn.Module, *inputs: Tensor) -> Any:
            return compute(self, compiled.setdefault(id(network), torch.compile(network)), *inputs)

        main.Precision.__call__ = call
    with tempfile.TemporaryDirectory() as logs:
        precision = "bfloat16" if row == "bfloat16" else "float32"
        settings = Settings.for_dataset(
            "digits", method=method, image_size=image_size, precision=precision, logs=logs, lr=Settings.lr
        )
        main.train(RunFolder(settings, device), BITS, load_data("digits", "", Options(seed=0)))


class InDefaultFormat(nn.Module):
    """A network that stays in torch's default memory format whatever it is asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.feature_dim = network, network.feature_dim

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def to(self, *arguments: Any, memory_format: Any = None, **options: Any) -> nn.Module:
        return super().to(*arguments, **options) if arguments or options else self


def measure(
    method: str, image_size: int, rows: list[str], rounds: int, device: str
) -> dict[str, tuple[list[float], int]]:
    """Seconds of each step and peak memory in bytes, by row; the rows step in turn."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for row in rows:
        pipes[row], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(row, method, image_size, device, theirs)))
        processes[-1].start()
        theirs.close()
    taken: dict[str, list[float]] = {row: [] for row in rows}
    peak = {}
    for turn in range(WARM_UP + rounds):
        for row in rows:
            pipes[row].send(True)
            seconds, peak[row] = pipes[row].recv()
            if turn >= WARM_UP:
                taken[row].append(seconds)
    for row, process in zip(rows, processes, strict=True):
        pipes[row].send(False)
        process.join()
    return {row: (taken[row], peak[row]) for row in rows}


# ---- The report ----


def print_numbers(method: str, image_size: int, here: dict[str, float] | None) -> None:
    found = numbers(method, image_size)
    moved = found["parameter_bytes"] + found["activation_bytes"]
    print(
        f"\n## {method}, {BITS} bits, batch {BATCH}, images of {image_size}\n\n"
        f"{found['parameters'] / 1e6:.1f} M parameters; {found['operations'] / 1e9:.0f} thousand million operations; "
        f"{found['parameter_bytes'] / 1e9:.2f} GB for weights, gradients and Adam, "
        f"{found['activation_bytes'] / 1e9:.2f} GB for layers' outputs."
    )
    machines = [("H100 (data sheet)", H100)] if here is None else [("this machine", here), ("H100 (data sheet)", H100)]
    for name, rate in machines:
        for precision in ("float32", "bfloat16"):
            compute, memory = found["operations"] / rate[precision], moved / rate["bytes"]
            print(
                f"{name}, {precision}: {compute * 1e3:.4g} ms of arithmetic, {memory * 1e3:.4g} ms of memory traffic, "
                f"{(compute + memory) * 1e3:.4g} ms one after the other."
            )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.step", description="Times a training step; see docs/performance.md."
    )
    parser.add_argument("--method", choices=list(MAINS), action="append", help="(default: both)")
    parser.add_argument("--image-size", type=int, action="append", help="(default: 64 and 224)")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows, separated by commas [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each row that count [%(default)s]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--numbers", action="store_true", help="only the operations and bytes")
    given = parser.parse_args(arguments)
    rows = given.rows.split(",")
    known = ROWS + MORE_ROWS
    if unknown := set(rows) - set(known):
        parser.error(f"--rows: unknown {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    device = choose_device(given.device)
    here = None if given.numbers else rates(device)
    if here is not None:
        print(
            f"{device_name(device)}, torch {torch.__version__}: {here['float32'] / 1e9:.0f} / "
            f"{here['bfloat16'] / 1e9:.0f} thousand million operations/s (float32 / bfloat16 product), "
            f"{here['bytes'] / 1e9:.0f} GB/s (copy)"
        )
    for method in given.method or MAINS:
        for image_size in given.image_size or (64, 224):
            print_numbers(method, image_size, here)
            if given.numbers:
                continue
            found = measure(method, image_size, rows, given.rounds, given.device)
            reference = statistics.median(found[rows[0]][0])
            print(f"\n| row | seconds (median of {given.rounds}) | spread | {rows[0]} / row | peak memory, MiB |")
            print("|---|---|---|---|---|")
            for row, (seconds, peak) in found.items():
                median = statistics.median(seconds)
                print(
                    f"| {row} | {median:.4g} | {min(seconds):.4g} to {max(seconds):.4g} | {reference / median:.2f} "
                    f"| {peak / 2**20:.0f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
