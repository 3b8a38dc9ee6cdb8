"""What only a GPU can show; skipped without one. `make test-gpu` runs these tests alone."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import run
from data import Options, load_data
from data.data_loader import eval_batches, train_batches
from data.pixel_cache import CachedPixels
from data.pixels import MemoryPixels
from modules import image_network
from modules.all_in_one import attend, attention
from training.cuda_graphs import RecordedStep
from training.loop import Loop
from training.network_codes import encode
from utils.devices import choose_device
from utils.hamming import Matrices, count_by_distance, stable_precisions

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

METHODS = ["main_mmasia", "main_tomm", "adsh", "orthohash"]
# Three steps on random weights. One pass: Adam's steps have the sign of the gradient, so that rounding errors grow.
SMALL = [
    "--backbone",
    "squeezenet1_0",
    "--num-samples",
    "150",
    "--max-iter",
    "1",
    "--max-epoch",
    "1",
    "--code-length",
    "16",
]
GREY_LEVEL = 1 / 255 / 0.224  # of a normalised image


@pytest.fixture
def exact(monkeypatch):
    """Products in full float32 precision, and no dropout, whose draws differ between devices."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)


@pytest.fixture
def same_pixels(monkeypatch):
    """Batches for a GPU are made on the CPU, which rounds to whole grey levels."""
    monkeypatch.setattr(MemoryPixels, "on", lambda self, device: None)


def train(logs, *flags):
    """The rows of metrics.jsonl of a run."""
    assert run.main(["--dataset", "digits", "--logs", str(logs), *SMALL, *flags]) == 0
    (folder,) = logs.iterdir()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_losses_equal(row, other, tolerance):
    assert row["loss"].keys() == other["loss"].keys()
    for name, value in row["loss"].items():
        assert value == pytest.approx(other["loss"][name], rel=tolerance), name


def test_auto_is_the_gpu():
    assert choose_device("auto").type == "cuda"


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_the_cpu(method, tmp_path, exact, same_pixels):
    (cpu,), (cuda,) = (train(tmp_path / device, "--method", method, "--device", device) for device in ("cpu", "cuda"))
    assert_losses_equal(cuda, cpu, 1e-3)


# Five steps: one before the recording, three that are replayed, and a smaller one.
REPLAYED = ["--num-samples", "278", "--cuda-graphs"]


@pytest.mark.parametrize("method", METHODS)
def test_cuda_graphs_change_no_loss(method, tmp_path, exact):
    (plain,) = train(tmp_path / "plain", "--method", method, *REPLAYED[:2])
    (replayed,) = train(tmp_path / "replayed", "--method", method, *REPLAYED)
    assert_losses_equal(replayed, plain, 1e-3)


def test_a_recorded_step_follows_a_changed_rate():
    def trained(recorded):
        torch.manual_seed(0)
        layer = nn.Linear(8, 8).cuda()
        adam = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)

        def step(x):
            loss = layer(x).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            return {"loss": loss}, layer.weight

        take = RecordedStep(step, (adam,)) if recorded else step
        losses = []
        for number in range(8):
            if number == 5:
                adam.param_groups[0]["lr"] = 0.01
            losses.append(take(torch.randn(4 if number == 3 else 16, 8, device="cuda"))[0]["loss"].detach())
        return torch.stack(losses), layer.weight.detach()

    for recorded, plain in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(recorded, plain)


@pytest.mark.parametrize("flags", [[], REPLAYED, [*REPLAYED, "--precision", "bfloat16"]])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_gpu(method, flags, tmp_path, monkeypatch):
    batches = Loop.batches

    def watched(*arguments):
        for number, batch in enumerate(batches(*arguments)):
            if number == 2:  # the first step allocates the state of Adam, the second one may be recorded
                torch.cuda.set_sync_debug_mode("error")
            yield batch
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "batches", watched)
    try:
        train(tmp_path, "--method", method, *flags)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [8, 64])
def test_the_attention_of_large_inputs_has_finite_gradients(rows, precision):
    torch.manual_seed(0)
    layer = attention(1024, 512).cuda()
    for size in (1, 1e2, 1e4, 1e6):
        queries = (size * torch.rand(rows, 1024, device="cuda")).requires_grad_()
        values = (size * torch.rand(rows, 512, device="cuda")).requires_grad_()
        with torch.autocast("cuda", precision, enabled=precision == torch.bfloat16):
            attend(layer, queries, values).float().sum().backward()
        gradients = [queries.grad, values.grad, *(parameter.grad for parameter in layer.parameters())]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), size
        layer.zero_grad()


def test_bfloat16_is_near_float32(tmp_path, exact):
    (single,) = train(tmp_path / "float32", "--method", "main_tomm")
    (half,) = train(tmp_path / "bfloat16", "--method", "main_tomm", "--precision", "bfloat16")
    assert_losses_equal(half, single, 0.05)


@pytest.mark.parametrize("method", ["main_tomm", "orthohash"])
def test_a_resumed_run_continues(method, tmp_path, monkeypatch):
    """With dropout: its generator is restored, too."""
    flags = ["--method", method, "--max-iter", "2", "--save-iter", "1"]
    unbroken = train(tmp_path, *flags)
    (folder,) = tmp_path.iterdir()
    (folder / "results.json").unlink()
    (folder / "checkpoint-16bits-000002.pt").unlink()
    assert run.main(["--resume", str(folder)]) == 0
    resumed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert resumed[0] == unbroken[0]
    assert_losses_equal(resumed[1], unbroken[1], 1e-2)


def test_torchrun_with_nccl(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--", "run.py", *SMALL, "--logs", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "config.json").read_text())["device"].startswith("cuda")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Class folders of 48 × 40 pixels, cached."""
    root, draw = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for label in range(2):
        for number in range(40):
            small = draw.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            path = root / f"class{label}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))).save(path)
    return load_data("folder", root, Options(seed=0, image_size=32))


@pytest.mark.parametrize("augment", ["crop-flip", "none"])
def test_batches_made_on_the_gpu_differ_by_rounding(augment, photographs):
    dataset = photographs.database
    assert isinstance(dataset.source, CachedPixels)
    options = {"batch_size": 32, "key": (1,), "augment": augment}
    cpu = train_batches(dataset, range(70), **options)
    cuda = train_batches(dataset, range(70), device="cuda", channels_last=True, **options)
    assert len(cpu) == len(cuda) == 3
    for left, right in zip(cpu, cuda, strict=True):
        assert all(tensor.is_cuda for tensor in right)
        assert float((left[0] - right[0].cpu()).abs().max()) < 1.5 * GREY_LEVEL
        assert all(torch.equal(*pair) for pair in zip(left[1:], (tensor.cpu() for tensor in right[1:]), strict=True))


def test_batches_of_images_of_several_sizes(photographs, monkeypatch):
    """They are made by threads on the CPU and sent from page-locked memory."""
    monkeypatch.setattr(CachedPixels, "on", lambda self, device: None)
    cpu, cuda = (eval_batches(photographs.database, batch_size=32, device=device) for device in ("cpu", "cuda"))
    for left, right in zip(cpu, cuda, strict=True):
        assert all(torch.equal(a, b.cpu()) for a, b in zip(left, right, strict=True))


def test_codes_of_images_are_those_of_the_cpu(photographs, exact):
    torch.manual_seed(0)
    network = image_network("squeezenet1_0", 32, weights=None, image_size=32)
    cpu, cuda = (
        encode(network.to(device), photographs.database, batch_size=32, device=torch.device(device))
        for device in ("cpu", "cuda")
    )
    assert float((cpu != cuda).float().mean()) < 0.01


@pytest.mark.parametrize("grades", [1, 3])
def test_counts_on_the_gpu_are_those_of_compiled_code(grades):
    draw = torch.Generator().manual_seed(0)
    codes = [torch.randint(2, (n, 32), generator=draw) * 2.0 - 1 for n in (300, 40_000)]
    labels = [(torch.rand(n, 8, generator=draw) < 0.3).float() for n in (300, 40_000)]
    matrices = Matrices(*codes, *labels)
    for left, right in zip(
        count_by_distance(matrices, grades=grades),
        count_by_distance(matrices, grades=grades, device="cuda"),
        strict=True,
    ):
        assert np.array_equal(left, right)
    np.testing.assert_allclose(
        stable_precisions(matrices, 40_000),
        stable_precisions(matrices, 40_000, device="cuda"),
        rtol=1e-12,
    )
