"""Every formula against reference vectors that other code computed in float64 (tests/golden/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from modules import MLP, CycleNet, ReconstructionDiscriminator, cycle_loss_parts
from modules.discrete import balance_ratio, discrete_step, softened
from modules.losses import discriminator_loss, generator_loss
from utils.evaluate import average_precision, mean_average_precision

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "schn_golden.npz") as file:
        arrays = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    return {name: value.double() if value.is_floating_point() else value for name, value in arrays.items()}


def parameters(golden, group):
    prefix = f"{group}.param."
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def load(module, state):
    module.double().load_state_dict(state, strict=True)
    return module.eval()


@pytest.mark.parametrize("variant", ["mmasia", "tomm"])
def test_cycle_net(golden, variant):
    state = parameters(golden, variant)
    hidden, label_dim = state["model_image_rec.net.0.weight"].shape[0], state["model_image_rec.net.2.weight"].shape[0]
    net = CycleNet(
        golden["codes"].shape[1],
        variant=variant,
        image_dim=golden["image_features"].shape[1],
        label_dim=label_dim,
        latent_dim=state["gcn.gc.weight"].shape[1],
        hidden_dim=hidden,
    )
    outputs = load(net, state)(golden["image_features"], golden["label_features"], golden["similarity"])
    for name, output in zip(
        ("latent_code", "latent_features", "image_code_rec", "label_code_rec"), outputs, strict=True
    ):
        assert_equal(output, golden[f"{variant}.{name}"])


def test_label_net(golden):
    state = parameters(golden, "label_net")
    feature_dim, hidden_dim = state["net.2.weight"].shape
    net = MLP(
        golden["labels"].shape[1], state["hash_layer.0.weight"].shape[0], hidden_dim=hidden_dim, feature_dim=feature_dim
    )
    features, code = load(net, state)(golden["labels"])
    assert_equal(features, golden["label_net.features"])
    assert_equal(code, golden["label_net.code"])


def test_cycle_loss_and_its_gradients(golden):
    names = ("latent", "image", "label", "image_rec", "label_rec")
    inputs = [golden[f"loss.{name}"].clone().requires_grad_() for name in names]
    parts = cycle_loss_parts(*inputs, golden["codes"], golden["similarity"], gamma=float(golden["loss.gamma"]))
    assert list(parts) == ["image", "label", "latent", "image_rec", "label_rec"]
    loss = torch.stack(list(parts.values())).sum()
    assert_equal(loss.detach(), golden["loss.value"])
    loss.backward()
    for name, value in zip(names, inputs, strict=True):
        assert_equal(value.grad, golden[f"loss.grad_{name}"])


def test_discriminator(golden):
    state = parameters(golden, "discriminator")
    feature_dim, hidden_dim = state["model_imageD.net.2.weight"].shape
    net = load(
        ReconstructionDiscriminator(golden["codes"].shape[1], hidden_dim=hidden_dim, feature_dim=feature_dim), state
    )
    real = net(golden["loss.image"], golden["loss.label"])
    fake = net(golden["loss.image_rec"], golden["loss.label_rec"])
    assert_equal(real, golden["discriminator.p_real"])
    assert_equal(fake, golden["discriminator.p_fake"])
    assert_equal(discriminator_loss(real, fake), golden["discriminator.loss_real"] + golden["discriminator.loss_fake"])
    assert_equal(generator_loss(fake), golden["discriminator.loss_generator"])


def test_softened_similarity(golden):
    labels, database_labels = golden["dcc.labels_sample"], golden["dcc.labels_database"]
    ratio = balance_ratio(labels, database_labels)
    assert_equal(softened(labels, database_labels, ratio), golden["dcc.soft_similarity"])


def test_discrete_step(golden):
    labels, sample = golden["dcc.labels_database"], golden["dcc.sample_index"]
    assert torch.equal(labels[sample], golden["dcc.labels_sample"])
    codes = torch.full((len(labels), golden["dcc.codes_before"].shape[1]), 0.5, dtype=torch.float64)
    codes[sample] = golden["dcc.codes_before"]
    sample_codes = torch.stack([golden[f"dcc.{name}_code"] for name in ("image", "label", "latent")])
    inputs = [tensor.clone() for tensor in (sample, labels, sample_codes)]
    weights = {name: float(golden[f"dcc.{name}"]) for name in ("alpha", "beta", "gamma")}
    assert discrete_step(codes, sample, labels, sample_codes, **weights) is None  # in place
    assert torch.equal(codes[sample], golden["dcc.codes_after"])
    others = torch.ones(len(codes), dtype=torch.bool).index_fill(0, sample, False)
    assert (codes[others] == 0.5).all(), "the rows outside the sample must not change"
    for tensor, before in zip((sample, labels, sample_codes), inputs, strict=True):
        assert torch.equal(tensor, before), "only the codes may change"


def test_average_precision(golden):
    arguments = [golden[f"map.{name}"] for name in ("query_code", "database_code", "query_labels", "database_labels")]
    assert_equal(average_precision(*arguments, ties="stable"), golden["map.stable_ap_topall"])
    assert_equal(average_precision(*arguments, topk=50, ties="stable"), golden["map.stable_ap_top50"])
    # The reference is a mean over 4,000 random orders; its own error is about 5e-3.
    torch.testing.assert_close(
        average_precision(*arguments), golden["map.tie_averaged_ap_topall_4000_shuffles"], rtol=0, atol=5e-3
    )
    assert mean_average_precision(*arguments, ties="stable") == pytest.approx(
        golden["map.stable_ap_topall"].mean().item(), abs=TOLERANCE
    )
