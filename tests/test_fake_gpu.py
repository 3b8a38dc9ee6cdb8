"""Every method on a pretended GPU: tensors with a device and a shape, but without values, so that none is needed.

torch computes the device of every result and refuses an operation between devices, as a GPU would. What the real one
computes is tested in tests/gpu.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import main_mmasia
import main_tomm
from baselines import adsh, symmetric
from data import Options, load_data
from modules import discrete
from training.settings import ALL_METHODS, METHODS, Settings

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 10), reason="torch 2.9 asks the driver of a pretended GPU")
CUDA = torch.device("cuda", 0)
MAINS = {"main_mmasia": main_mmasia, "main_tomm": main_tomm, "adsh": adsh}
SAMPLES, BATCH, SIZE, BITS = 24, 8, 64, 16


class FakeLoop:
    """In the place of `training.loop.Loop`: one iteration of one pass over two batches, all on the GPU."""

    def __init__(self, started, run, code_length, split, codes, model_image, **parts):
        self.codes, self.classes = codes, split.num_classes
        self.networks = [part for part in (model_image, *parts.values()) if isinstance(part, torch.nn.Module)]
        self.losses, self.ended = [], False
        started.append(self)

    def recorded(self, step, *optimizers):
        return step

    def replay(self, network):
        pass

    def iterations(self):
        yield 0, torch.arange(SAMPLES, device=CUDA)

    def batches(self, sample, *key):
        for rows in sample.split(BATCH)[:2]:
            images = torch.empty(BATCH, 3, SIZE, SIZE, device=CUDA).contiguous(memory_format=torch.channels_last)
            yield images, torch.ones(BATCH, self.classes, device=CUDA), rows

    def step(self, losses):
        self.losses.append({name: (value.device, tuple(value.shape)) for name, value in losses.items()})

    def end_pass(self, iteration, epoch):
        pass

    def end_iteration(self, iteration, sample, sample_codes=None):
        codes = self.codes if sample_codes is None else sample_codes
        assert codes.device == CUDA and codes.shape[1] == BITS
        self.ended = True

    def finish(self, simplify=None):
        return {}  # not simplified: a deep copy of tensors without memory damages that of others


def move(network, device=None, **_):
    """In the place of `nn.Module.to`, which cannot exchange the memory of tensors that have none."""
    for module in network.modules() if device is not None else ():
        for name, value in module._parameters.items():
            module._parameters[name] = None if value is None else torch.nn.Parameter(value.detach().to(device))
        for name, value in module._buffers.items():
            module._buffers[name] = None if value is None else value.to(device)
    return network


def every_code(model_image, model_label, dataset, run):
    """In the place of `network_codes`, which would read images."""
    return torch.zeros(3, len(dataset), BITS, device=CUDA)


@pytest.fixture
def train(monkeypatch):
    """A function that trains a method without the loop around it, backward passes, and decisions by values."""
    split, started = load_data("digits", "unused", Options(image_size=SIZE)), []
    for main in (*MAINS.values(), symmetric):
        monkeypatch.setattr(main, "Loop", partial(FakeLoop, started))
        if main in (main_mmasia, main_tomm):
            monkeypatch.setattr(main, "network_codes", every_code)
    monkeypatch.setattr(torch.nn.Module, "to", move)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **_: None)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    for module in (discrete, adsh):
        monkeypatch.setattr(module, "balance_ratio", lambda sample_labels, labels: 0.5)

    def on_a_gpu(method, **given):
        settings = Settings.for_dataset(
            "digits", method=method, num_samples=SAMPLES, batch_size=BATCH, max_epoch=1, image_size=SIZE, **given
        )
        run = SimpleNamespace(settings=settings, device=CUDA, initial_weights=lambda code_length: "none")
        # Without a graph: torch asks the CUDA driver for the stream of each of its nodes.
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), torch.no_grad():
            MAINS.get(method, symmetric).train(run, BITS, split)
        return started[0]

    return on_a_gpu


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_leaves_no_tensor_on_the_cpu(method, train):
    loop = train(method)
    assert loop.ended and len(loop.losses) == 2
    assert loop.losses[0] and set(loop.losses[0].values()) == {(CUDA, ())}
    for network in loop.networks:
        for name, value in network.state_dict().items():
            assert value.device == CUDA, name


@pytest.mark.parametrize("method", METHODS)
def test_the_ablations_leave_none_either(method, train):
    switches = ("update_all_rows", "detach_targets", "no_cycle_terms")
    names = {"latent": "tanh", "similarity": "signed", "adjacency": "normalised"}
    assert train(method, **names, **dict.fromkeys(switches, True)).ended


def test_a_tensor_that_was_left_on_the_cpu_is_found(train, monkeypatch):
    monkeypatch.setattr(main_mmasia, "label_similarity", lambda labels: torch.ones(len(labels), len(labels)))
    with pytest.raises(RuntimeError, match=r"found at least two devices|found two different devices"):
        train("main_mmasia")
