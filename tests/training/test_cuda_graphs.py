"""When a network is replayed; a recorder without a GPU stands in for torch's. `tests/gpu` has the real one."""

import pytest
import torch
from torch import nn

from data import Options, load_data
from training.cuda_graphs import replay_forward
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


def test_without_a_gpu_the_flag_has_no_effect(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(
        "training.preflight.load_split", lambda settings: load_data("digits", "", Options(image_size=16))
    )
    settings = Settings.for_dataset("digits", cuda_graphs=True, device="cpu", logs=str(tmp_path))
    preflight(settings)
    assert "--cuda-graphs has no effect on the cpu" in caplog.text
