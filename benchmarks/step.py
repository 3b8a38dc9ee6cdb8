"""Times a training step against a plain transcription of it and against the limits of the hardware.

    python -m benchmarks.step                        # both variants, images of 64 and 224, the first seven rows
    python -m benchmarks.step --method main_tomm --image-size 224 --rows plain,ours
    python -m benchmarks.step --numbers              # only the operations and bytes of a step; nothing is timed

Every row is a process with its own networks. The processes take steps in turn. `plain` is tests/plain_step.py. The
other rows run `train` of main_mmasia.py or main_tomm.py; a step is timed from the moment the main receives a mini-batch
to the moment it asks for the next one.

    plain          the reference: default Adam, TOMM's second pass with its graph, freed memory returned to the system
    ours           the main as run.py starts it, float32, but threads wait as OpenMP does by default
    bfloat16       the same with --precision bfloat16
    no-fused       ours, but the optimisers with torch's default instead of fused=True
    no-kept        ours, but freed memory is returned to the system after each step
    no-channels    ours, but weights and images in torch's default memory format
    compile        ours, with torch.compile for the networks
    foreach        ours, but the optimisers with foreach=True
    zeroed         ours, but gradients are set to zero and added to, instead of set to None
    need-weights   ours, but the attentions also return their weights
    onednn         ours, but oneDNN multiplies in the linear layers instead of torch's BLAS (CPU only)
    graphs         ours, with --cuda-graphs (GPU only), and so are bfloat16-graphs and tf32-graphs
    tf32, no-tf32  ours, with TensorFloat-32 for all products and convolutions, or for none (GPU only); torch's default,
                   as in ours, is for convolutions alone
    passive        ours, with threads that sleep while they wait for each other (OMP_WAIT_POLICY=PASSIVE)
    active         ours, with threads that spin (OMP_WAIT_POLICY=ACTIVE)
    one-thread     ours, with one thread

Those after compile run only if `--rows` names them: a row takes about 3 GB of memory.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial, partialmethod
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import main_mmasia
import main_tomm
import training.loop
from benchmarks.timing import in_turn, memory, print_table, seconds, worker
from data import Options, load_data
from modules import MLP, AlexNetHash, CycleNet, ReconstructionDiscriminator, all_in_one
from tests.plain_step import Networks, plain_step
from training.run_folder import RunFolder, device_name
from training.settings import Settings
from utils.command import Parser, bounded, run_command
from utils.devices import choose_device, keep_freed_memory

PROGRAM = "python -m benchmarks.step"
MAINS: dict[str, Any] = {"main_mmasia": main_mmasia, "main_tomm": main_tomm}
ROWS = ("plain", "ours", "bfloat16", "no-fused", "no-kept", "no-channels", "compile")
MORE_ROWS = (
    "foreach",
    "zeroed",
    "need-weights",
    "onednn",
    "graphs",
    "bfloat16-graphs",
    "tf32",
    "tf32-graphs",
    "no-tf32",
)
THREAD_ROWS = ("passive", "active", "one-thread")
# What OpenMP reads when torch is imported.
ENVIRONMENT = {
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "one-thread": {"OMP_NUM_THREADS": "1"},
}
BITS, BATCH, CLASSES, GAMMA = 32, 64, 10, 10.0
# NVIDIA's data sheet of the H100 SXM: float32 without tensor cores, tf32 and bfloat16 with them (dense), memory.
H100 = {"float32": 67e12, "tf32": 495e12, "bfloat16": 989e12, "bytes": 3.35e12}


def networks(method: str) -> list[Any]:
    """model_image, model_label, model_cycle and, for TOMM, the discriminator, with random weights."""
    cycle = CycleNet(BITS, variant=method.removeprefix("main_"))
    built = [AlexNetHash(BITS, weights=None), MLP(CLASSES, BITS), cycle]
    return [*built, ReconstructionDiscriminator(BITS)] if method == "main_tomm" else built


def batch(image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """images [N, 3, S, S], labels [N, C], b [N, K]."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, image_size, image_size, generator=generator)
    labels = torch.eye(CLASSES)[torch.randint(CLASSES, (BATCH,), generator=generator)]
    return images, labels, torch.randn(BATCH, BITS, generator=generator).sign()


def numbers(method: str, image_size: int) -> tuple[int, int, int, int]:
    """The least that a step must do, counted on networks without memory (device "meta").

    Returns:
        The number of parameters; operations of matrix products and convolutions, a multiply-add counting as two; bytes
        for parameters, 40 each: float32 weights read in both passes, gradients written, gradient, weight and two
        moments read by Adam and the last three written (TOMM: the same again for model_cycle and the discriminator, and
        the other weights read once more); bytes for the output of each layer and its gradient, written and read.
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
    return sum(sizes), counter.get_total_flops(), parameter_bytes, outputs * 4 * 4


def rates(device: torch.device) -> dict[str, float]:
    """This machine: operations per second of a large product, bytes per second of a copy; the fastest of nine calls."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.randn(n, 4096, device=device).to(dtype) for n in (1024, 4096))
        out = torch.empty(1024, 4096, device=device, dtype=dtype)
        product = partial(torch.mm, left, right.T, out=out)
        found[name] = 2 * 1024 * 4096 * 4096 / min(seconds(product) for _ in range(9))
    source = torch.zeros(2**26, device=device)
    copy = partial(torch.zeros_like(source).copy_, source)
    found["bytes"] = 2 * source.numel() * 4 / min(seconds(copy) for _ in range(9))
    return found


def feed(connection: Connection, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same mini-batch each time the parent process asks; sends it the seconds of the step and the peak memory."""
    cuda = tensors[0].is_cuda
    while True:
        connection.recv()
        start = time.perf_counter()
        yield tensors
        if cuda:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if cuda else memory("VmHWM")
        connection.send((time.perf_counter() - start, peak))


def run_steps(connection: Connection, row: str, method: str, image_size: int, logs: str) -> None:
    """A process that takes one step each time the parent process asks."""
    device = choose_device("auto")
    torch.manual_seed(0)
    images, labels, b = (tensor.to(device) for tensor in batch(image_size))
    if row == "plain":
        step = Networks(*(network.to(device) for network in networks(method)))
        for _ in feed(connection, images, labels):
            plain_step(step, images, labels, b, GAMMA)
    if row != "no-kept":
        keep_freed_memory()
    main = MAINS[method]
    if row == "no-channels":
        torch.channels_last = torch.contiguous_format
    images = images.contiguous(memory_format=torch.channels_last)
    training.loop.train_batches = lambda *_, **__: feed(connection, images, labels, torch.arange(BATCH, device=device))  # type: ignore
    if row in ("no-fused", "foreach"):
        adam = partial(torch.optim.Adam, foreach=True if row == "foreach" else None)
        torch.optim.Adam = lambda *arguments, fused, **options: adam(*arguments, **options)  # type: ignore
    if row == "zeroed":
        zero_grad = partialmethod(torch.optim.Optimizer.zero_grad, set_to_none=False)
        torch.optim.Adam.zero_grad = zero_grad  # type: ignore
    if row == "need-weights":
        all_in_one.attend = lambda layer, query_and_key, value: layer(query_and_key, query_and_key, value)[0]
    if row == "onednn":
        linear = functional.linear
        functional.linear = lambda x, weight, bias=None: linear(x.to_mkldnn(), weight, bias).to_dense()  # type: ignore
    if "tf32" in row:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = row != "no-tf32"
    if row == "compile":
        main.Loop = compiled_loop
    settings = Settings.for_dataset(
        "digits",
        method=method,
        image_size=image_size,
        precision="bfloat16" if row.startswith("bfloat16") else "float32",
        cuda_graphs=row.endswith("graphs"),
        logs=logs,
        lr=Settings.lr,
    )
    main.train(RunFolder(settings, device), BITS, load_data("digits", "", Options(seed=0)))


def compiled_loop(*arguments: Any, **parts: Any) -> training.loop.Loop:
    """The main's loop, with its networks under torch.compile."""
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.compile()
    return training.loop.Loop(*arguments, **parts)


def measure(
    method: str, image_size: int, rows: list[str], rounds: int, busy: int = 0
) -> dict[str, list[tuple[float, int]]]:
    """Seconds and peak memory in bytes of each step, by row, while `busy` other processes compute all the time."""
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        works = {}
        for row in rows:
            steps = worker(f"--rows {row}", run_steps, row, method, image_size, f"{logs}/{row}")
            with mock.patch.dict(os.environ, ENVIRONMENT.get(row, {})):
                works[row] = partial(stack.enter_context(steps), "step")
        for _ in range(busy):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        return in_turn(works, rounds, warm_up=3)


def print_numbers(method: str, image_size: int, machines: dict[str, dict[str, float]]) -> None:
    """The operations and bytes of a step, and how long they take at the rates of each machine."""
    parameters, operations, parameter_bytes, activation_bytes = numbers(method, image_size)
    print(
        f"\n## {method}, {BITS} bits, batch {BATCH}, images of {image_size}\n\n"
        f"{parameters / 1e6:.1f} M parameters; {operations / 1e9:.0f} billion operations; "
        f"{parameter_bytes / 1e9:.2f} GB for weights, gradients and Adam, "
        f"{activation_bytes / 1e9:.2f} GB for the outputs of layers."
    )
    for name, rate in machines.items():
        for precision in ("float32", "bfloat16"):
            compute, traffic = operations / rate[precision], (parameter_bytes + activation_bytes) / rate["bytes"]
            print(
                f"{name}, {precision}: {compute * 1e3:.4g} ms of arithmetic, {traffic * 1e3:.4g} ms of memory traffic, "
                f"{(compute + traffic) * 1e3:.4g} ms in sum."
            )


def main() -> None:
    """Time the steps that the command line names and print tables."""
    parser = Parser(prog=PROGRAM, description="Times a training step; see docs/performance.md.")
    parser.add_argument("--method", choices=list(MAINS), action="append", help="(default: both)")
    parser.add_argument("--image-size", type=bounded(int, 1), action="append", help="(default: 64 and 224)")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows, separated by commas [%(default)s]")
    parser.add_argument("--rounds", type=bounded(int, 1), default=5, help="timed steps of each row [%(default)s]")
    parser.add_argument("--busy", type=bounded(int, 0), default=0, metavar="N", help="other processes that compute [0]")
    parser.add_argument("--numbers", action="store_true", help="only the operations and bytes")
    given = parser.parse_args()
    rows = given.rows.split(",")
    known = ROWS + MORE_ROWS + THREAD_ROWS
    if unknown := set(rows) - set(known):
        parser.error(f"--rows: unknown {', '.join(sorted(unknown))}; use {', '.join(known)}")
    machines = {"H100 (data sheet)": H100}
    if not given.numbers:
        device = choose_device("auto")
        here = rates(device)
        machines = {"this machine": here, **machines}
        print(
            f"{device_name(device)}, torch {torch.__version__}: {here['float32'] / 1e9:.0f} / "
            f"{here['bfloat16'] / 1e9:.0f} billion operations/s (float32 / bfloat16 product), "
            f"{here['bytes'] / 1e9:.0f} GB/s (copy)"
        )
    for method in given.method or MAINS:
        for image_size in given.image_size or (64, 224):
            print_numbers(method, image_size, machines)
            if given.numbers:
                continue
            measured = measure(method, image_size, rows, given.rounds, given.busy)
            medians = {row: statistics.median(taken for taken, _ in steps) for row, steps in measured.items()}
            table = []
            for row, steps in measured.items():
                spread = f"{min(steps)[0]:.4g} to {max(steps)[0]:.4g}"
                ratio, peak = medians[rows[0]] / medians[row], steps[-1][1] / 2**20
                table.append([row, f"{medians[row]:.4g}", spread, f"{ratio:.2f}", f"{peak:.0f}"])
            print()
            median = f"seconds (median of {given.rounds})"
            print_table(["row", median, "spread", f"{rows[0]} / row", "peak memory, MiB"], table)


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, main))
