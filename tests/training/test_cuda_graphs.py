"""When a network or a step is replayed; recorders without a GPU stand in for torch's. `tests/gpu` has the real ones."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data import Options, load_data
from training.cuda_graphs import RecordedStep, replay_forward
from training.preflight import preflight
from training.settings import Settings


class Network(nn.Module):
    """Counts its own passes, and has a buffer that each of them changes in train mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("passes", torch.zeros(()))
        self.plain = 0

    def forward(self, x):
        self.plain += 1
        if self.training:
            self.passes += 1
        return self.layer(x)


@pytest.fixture
def recorded(monkeypatch):
    """The shapes of the inputs that a replay was asked for."""
    replays = []

    def make_graphed_callables(network, examples, **_):
        layer = network.layer
        for _ in range(3):
            network(*examples)
        network.forward = lambda x: replays.append(tuple(x.shape)) or layer(x)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    return replays


def test_only_batches_of_the_first_shape_in_train_mode_are_replayed(recorded):
    network = Network()
    replay_forward(network)
    images = torch.randn(4, 3)
    expected = network.layer(images)
    assert torch.equal(network(images), expected) and recorded == [(4, 3)]
    assert network.passes == 0, "recording leaves no trace in the buffers"
    with torch.no_grad():
        assert torch.equal(network(images), expected) and recorded == [(4, 3)] * 2
    plain = network.plain
    assert torch.equal(network(images[:1]), expected[:1])
    assert network.plain == plain + 1, "the smaller last batch"
    assert torch.equal(network.eval()(images), expected)
    assert network.plain == plain + 2 and len(recorded) == 2
    network.train()(images)
    assert len(recorded) == 3


@pytest.fixture
def graphs(monkeypatch):
    """One entry for each recording: how often it was replayed."""
    made = []

    class Graph:
        def __init__(self):
            self.replays = 0
            made.append(self)

        def replay(self):
            self.replays += 1
            self.again()

    @contextmanager
    def record(graph, capture_error_mode):
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return made


def test_a_step_is_recorded_once_and_again_when_a_rate_changes(graphs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.5)
    taken = []

    def step(x):
        taken.append(tuple(x.shape))
        losses, codes = {"sum": x.sum()}, 2 * x

        def again():  # what a graph does: the same memory, other values
            losses["sum"].copy_(x.sum())
            codes.copy_(2 * x)

        if graphs:
            graphs[-1].again = again
        return losses, codes

    replayed = RecordedStep(step, (optimizer,))
    assert optimizer.param_groups[0]["capturable"]
    first = replayed(torch.full((4,), 1.0))
    assert first[0]["sum"] == 4 and not graphs, "computed as usual"
    losses = []
    for value in (2.0, 3.0):
        loss, codes = replayed(torch.full((4,), value))
        losses.append(loss["sum"])
        assert torch.equal(codes, torch.full((4,), 2 * value))
    assert losses == [8, 12], "the loss of a step stays when the next one is replayed"
    assert len(graphs) == 1 and graphs[0].replays == 2 and taken == [(4,)] * 2
    loss, _ = replayed(torch.ones(3))
    assert loss["sum"] == 3 and taken[-1] == (3,) and graphs[0].replays == 2, "the smaller last batch"
    optimizer.param_groups[0]["lr"] = 0.1
    assert replayed(torch.full((4,), 5.0))[0]["sum"] == 20
    assert len(graphs) == 2 and graphs[1].replays == 1


def test_without_a_gpu_the_flag_has_no_effect(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(
        "training.preflight.load_split", lambda settings: load_data("digits", "", Options(image_size=16))
    )
    settings = Settings.for_dataset("digits", cuda_graphs=True, device="cpu", logs=str(tmp_path))
    preflight(settings)
    assert "--cuda-graphs has no effect on the cpu" in caplog.text
