"""Small networks in the place of the real ones, so that a test trains a main in a second."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from modules import MLP, CycleNet, ReconstructionDiscriminator
from modules.pretrained import read_state

FEATURES = 24


class SmallImageNet(nn.Module):
    """Images [N, 3, S, S] → (features [N, 24], code [N, K]); looks at a 8×8 summary of the image."""

    feature_dim = FEATURES

    def __init__(self, backbone, code_length, *, weights=None, image_size=None, dropout=0.0):
        super().__init__()
        if weights not in (None, "none", "imagenet"):
            read_state(Path(weights))
        self.net = nn.Sequential(
            nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Dropout(dropout), nn.Linear(192, FEATURES), nn.ReLU()
        )
        self.hash_layer = nn.Sequential(nn.Linear(FEATURES, code_length), nn.Tanh())

    def forward(self, images):
        features = self.net(images)
        return features, self.hash_layer(features)


def constructors(dropout=0.0):
    """Stand-ins for the constructors that the mains call, by name."""
    return {
        "image_network": partial(SmallImageNet, dropout=dropout),
        "MLP": partial(MLP, hidden_dim=14, feature_dim=16),
        "CycleNet": partial(CycleNet, label_dim=16, latent_dim=20, hidden_dim=14, dropout=dropout),
        "ReconstructionDiscriminator": partial(ReconstructionDiscriminator, hidden_dim=14, feature_dim=16),
    }


def shrink(monkeypatch, main, dropout=0.0):
    """Make `main` build small networks; returns {constructor name: the instances it built}."""
    built = {}

    def recording(name, constructor):
        def construct(*arguments, **options):
            network = constructor(*arguments, **options)
            built.setdefault(name, []).append(network)
            return network

        return construct

    monkeypatch.setattr("training.preflight.image_network", SmallImageNet)
    for name, constructor in constructors(dropout).items():
        if hasattr(main, name):
            monkeypatch.setattr(main, name, recording(name, constructor))
    return built


def state(network):
    """A copy of every parameter."""
    return [parameter.detach().clone() for parameter in network.parameters()]


def changed(before, network):
    return any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def in_float64(monkeypatch):
    """Make training and encoding compute in float64; the caller sets torch's default dtype back."""
    from training import loop, network_codes

    def double(batches):
        return lambda *arguments, **options: (
            (images.double(), labels.double(), rows) for images, labels, rows in batches(*arguments, **options)
        )

    for module, name in ((loop, "train_batches"), (network_codes, "eval_batches")):
        monkeypatch.setattr(module, name, double(getattr(module, name)))
    torch.set_default_dtype(torch.float64)
