"""Times a training step against a plain transcription of it and against the limits of the hardware.

    python -m benchmarks.step                        # both variants, images of 64 and 224, the first seven rows
    python -m benchmarks.step --method main_tomm --image-size 224 --rows plain,ours
    python -m benchmarks.step --numbers              # only the operations and bytes of a step; nothing is timed

Every row is a process with its own networks. The processes take one step each in turn, `--rounds` times. `plain` is
tests/plain_step.py. The other rows run the main itself (`train` of main_mmasia.py or main_tomm.py); a step is timed
from the moment the main receives a mini-batch to the moment it asks for the next one.

    plain          the reference: default Adam, TOMM's second pass with its graph, freed memory returned to the system
    ours           the main as run.py starts it, float32
    bfloat16       the same with --precision bfloat16
    no-fused       ours, but the optimisers with torch's default instead of fused=True
    no-kept        ours, but freed memory is returned to the system after each step
    no-channels    ours, but weights and images in torch's default memory format
    compile        ours, with torch.compile for the networks
    foreach        ours, but the optimisers with foreach=True
    zeroed         ours, but gradients are set to zero and added to, instead of set to None
    need-weights   ours, but the attentions also return their weights
    onednn         ours, but oneDNN multiplies in the linear layers instead of torch's BLAS (CPU only)

The last four run only if `--rows` names them: a row takes about 3 GB of memory.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import main_mmasia
import main_tomm
import training.loop
from data import Options, load_data
from modules import MLP, AlexNetHash, CycleNet, ReconstructionDiscriminator, all_in_one
from tests.plain_step import Networks, plain_step
from training.run_folder import RunFolder, device_name
from training.settings import Settings
from utils.command import Parser, bounded, run_command
from utils.devices import choose_device, keep_freed_memory
from utils.errors import UserError

PROGRAM = "python -m benchmarks.step"
MAINS: dict[str, Any] = {"main_mmasia": main_mmasia, "main_tomm": main_tomm}
ROWS = ("plain", "ours", "bfloat16", "no-fused", "no-kept", "no-channels", "compile")
# Only by name: all eleven rows at once would take about 33 GB of memory.
MORE_ROWS = ("foreach", "zeroed", "need-weights", "onednn")
BITS, BATCH, CLASSES, GAMMA = 32, 64, 10, 10.0
WARM_UP = 3
# NVIDIA's data sheet of the H100 SXM: float32 without tensor cores, bfloat16 with them (dense), memory.
H100 = {"float32": 67e12, "bfloat16": 989e12, "bytes": 3.35e12}


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


# ---- The least that a step must do ----


def numbers(method: str, image_size: int) -> dict[str, float]:
    """Operations and bytes of one step, counted on networks without memory (device "meta").

    Returns:
        parameters: their number.
        operations: of matrix products and convolutions, forward and backward; a multiply-add counts as two
            (`FlopCounterMode` on the plain step).
        parameter_bytes: 40 bytes per parameter: float32 weights read in both passes, gradients written, gradient,
            weight and two moments read by Adam and the last three written. TOMM has the same again for model_cycle and
            the discriminator, and its second pass reads the other weights once.
        activation_bytes: the output of each layer written and read, and the same for its gradient.
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
    """The rates of this machine: operations per second of a large product, bytes per second of a copy."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = (torch.randn(n, 4096, device=device).to(dtype) for n in (1024, 4096))
        out = torch.empty(1024, 4096, device=device, dtype=dtype)
        seconds = fastest(partial(torch.mm, left, right.T, out=out), device)
        found[name] = 2 * 1024 * 4096 * 4096 / seconds
    source = torch.zeros(2**26, device=device)
    target = torch.zeros_like(source)
    found["bytes"] = 2 * source.numel() * 4 / fastest(lambda: target.copy_(source), device)
    return found


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of nine calls."""
    return min(clocked(work, device) for _ in range(9))


def clocked(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


# ---- The processes that take steps in turn ----


class Fed:
    """The same mini-batch each time the parent process asks for a step; sends it the seconds and the peak memory."""

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
    """Bytes: of the process, or of its tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(row: str, method: str, image_size: int, device_flag: str, connection: Connection) -> None:
    """A process that takes one step each time the parent process asks."""
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
    fed = Fed(connection, device, image_size, channels_last=row != "no-channels")
    training.loop.train_batches = lambda *_, **__: fed  # type: ignore
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
    if row == "no-channels":
        image_network = main.image_network
        main.image_network = lambda *arguments, **options: InDefaultFormat(image_network(*arguments, **options))
    if row == "compile":
        for name in ("image_network", "MLP", "CycleNet", "ReconstructionDiscriminator"):
            if hasattr(main, name):
                setattr(main, name, partial(compiled, getattr(main, name)))
    with tempfile.TemporaryDirectory() as logs:
        precision = "bfloat16" if row == "bfloat16" else "float32"
        settings = Settings.for_dataset(
            "digits", method=method, image_size=image_size, precision=precision, logs=logs, lr=Settings.lr
        )
        main.train(RunFolder(settings, device), BITS, load_data("digits", "", Options(seed=0)))


def compiled(build: Callable[..., nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    """The network that `build` returns, under torch.compile."""
    network = build(*arguments, **options)
    network.compile()
    return network


class InDefaultFormat(nn.Module):
    """A network that stays in torch's default memory format."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.feature_dim = network, network.feature_dim

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def to(self, *arguments: Any, memory_format: Any = None, **options: Any) -> nn.Module:  # type: ignore
        return super().to(*arguments, **options) if arguments or options else self


def measure(
    method: str, image_size: int, rows: list[str], rounds: int, device: str
) -> dict[str, tuple[list[float], int]]:
    """Seconds of each step and peak memory in bytes, by row; the rows take steps in turn.

    Raises:
        UserError: the process of a row has ended, for example for lack of memory.
    """
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
            try:
                pipes[row].send(True)
                seconds, peak[row] = pipes[row].recv()
            except (EOFError, OSError):
                for process in processes:
                    process.terminate()
                raise UserError(
                    f"--rows {row}: its process has ended, see above; if memory ran out, name fewer rows."
                ) from None
            if turn >= WARM_UP:
                taken[row].append(seconds)
    for row, process in zip(rows, processes, strict=True):
        pipes[row].send(False)
        process.join()
    return {row: (taken[row], peak[row]) for row in rows}


# ---- The output ----


def print_numbers(method: str, image_size: int, here: dict[str, float] | None) -> None:
    """The operations and bytes of a step, and how long they take at the rates of this machine and of an H100."""
    found = numbers(method, image_size)
    moved = found["parameter_bytes"] + found["activation_bytes"]
    print(
        f"\n## {method}, {BITS} bits, batch {BATCH}, images of {image_size}\n\n"
        f"{found['parameters'] / 1e6:.1f} M parameters; {found['operations'] / 1e9:.0f} billion operations; "
        f"{found['parameter_bytes'] / 1e9:.2f} GB for weights, gradients and Adam, "
        f"{found['activation_bytes'] / 1e9:.2f} GB for the outputs of layers."
    )
    machines = [("H100 (data sheet)", H100)] if here is None else [("this machine", here), ("H100 (data sheet)", H100)]
    for name, rate in machines:
        for precision in ("float32", "bfloat16"):
            compute, memory = found["operations"] / rate[precision], moved / rate["bytes"]
            print(
                f"{name}, {precision}: {compute * 1e3:.4g} ms of arithmetic, {memory * 1e3:.4g} ms of memory traffic, "
                f"{(compute + memory) * 1e3:.4g} ms in sum."
            )


def main(arguments: list[str]) -> None:
    """Time the steps that the command line names and print tables.

    Raises:
        UserError: a bad flag, or a process has ended.
    """
    parser = Parser(prog=PROGRAM, description="Times a training step; see docs/performance.md.")
    parser.add_argument("--method", choices=list(MAINS), action="append", help="(default: both)")
    parser.add_argument("--image-size", type=bounded(int, 1), action="append", help="(default: 64 and 224)")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows, separated by commas [%(default)s]")
    parser.add_argument("--rounds", type=bounded(int, 1), default=5, help="timed steps of each row [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [%(default)s]")
    parser.add_argument("--numbers", action="store_true", help="only the operations and bytes")
    given = parser.parse_args(arguments)
    rows = given.rows.split(",")
    known = ROWS + MORE_ROWS
    if unknown := set(rows) - set(known):
        parser.error(f"--rows: unknown {', '.join(sorted(unknown))}; use {', '.join(known)}")
    device = choose_device(given.device)
    here = None if given.numbers else rates(device)
    if here is not None:
        print(
            f"{device_name(device)}, torch {torch.__version__}: {here['float32'] / 1e9:.0f} / "
            f"{here['bfloat16'] / 1e9:.0f} billion operations/s (float32 / bfloat16 product), "
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


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, lambda: main(sys.argv[1:])))
