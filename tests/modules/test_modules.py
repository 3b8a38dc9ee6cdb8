"""Shapes, gradient flow and refusals of the networks and losses."""

import itertools

import pytest
import torch
from torchvision.models import alexnet

from modules import MLP, AlexNetHash, CycleNet, ReconstructionDiscriminator, cycle_loss_parts
from modules.losses import discriminator_loss, generator_loss
from utils.errors import UserError

WIDTHS = {"image_dim": 24, "label_dim": 16, "latent_dim": 20, "hidden_dim": 14}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(10, 5, generator=generator) > 0.6).float()
    return {
        "labels": labels,
        "similarity": (labels @ labels.T > 0).float(),
        "image_features": torch.randn(10, 24, generator=generator),
        "label_features": torch.randn(10, 16, generator=generator),
        "codes": torch.randn(10, 12, generator=generator).sign(),
    }


@pytest.mark.parametrize("variant", ["mmasia", "tomm"])
def test_no_gradient_of_the_cycle_reaches_the_features(batch, variant):
    net = CycleNet(12, variant=variant, **WIDTHS)
    image_features = batch["image_features"].requires_grad_()
    label_features = batch["label_features"].requires_grad_()
    outputs = net(image_features, label_features, batch["similarity"])
    torch.cat([output.flatten() for output in outputs]).square().sum().backward()
    assert image_features.grad is None and label_features.grad is None
    for name, parameter in net.named_parameters():
        if name != "self_attention_lat.in_proj_bias":
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_reconstruction_targets_are_not_detached(batch):
    names = ("latent", "image", "label", "image_rec", "label_rec")
    values = {name: torch.rand(10, 12).requires_grad_() for name in names}
    parts = cycle_loss_parts(*values.values(), batch["codes"], batch["similarity"], gamma=10)
    for part, target in (("image_rec", "image"), ("label_rec", "label")):
        (gradient,) = torch.autograd.grad(parts[part], values[target])
        expected = 2 * (values[target] - values[part]) / values[target].numel()
        torch.testing.assert_close(gradient, expected.detach())


def test_cycle_loss_against_loops(batch):
    gamma, code_length = 10.0, 8  # not 12, where the factor 12/K is 1
    values = [torch.rand(10, code_length, dtype=torch.float64) for _ in range(5)]
    codes, similarity = batch["codes"][:, :code_length].double(), batch["similarity"].double()

    def f(code):
        pairs = sum(
            (code_length * similarity[i, j] - code[i] @ codes[j]) ** 2
            for i, j in itertools.product(range(10), range(10))
        )
        quantisation = sum((code[i, k] - codes[i, k]) ** 2 for i in range(10) for k in range(code_length))
        return pairs / 100 * 12 / code_length + gamma * quantisation / (10 * code_length)

    latent, image, label, image_rec, label_rec = values
    expected = f(image) + f(label) + f(latent)
    expected += ((image_rec - image) ** 2).mean() + ((label_rec - label) ** 2).mean()
    parts = cycle_loss_parts(*values, codes, similarity, gamma=gamma)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(), expected, rtol=1e-12, atol=0)


def test_the_two_wirings_have_the_widths_of_the_papers():
    mmasia, tomm = CycleNet(32), CycleNet(32, variant="tomm")
    assert mmasia.self_attention_image_rec.embed_dim == 512 and mmasia.self_attention_image_rec.vdim == 1024
    assert mmasia.self_attention_label_rec.embed_dim == 4096 and mmasia.self_attention_label_rec.vdim == 1024
    assert tomm.self_attention_image_rec.embed_dim == 1024 and tomm.self_attention_image_rec.vdim == 512
    assert tomm.self_attention_label_rec.embed_dim == 1024 and tomm.self_attention_label_rec.vdim == 4096
    for net in (mmasia, tomm):
        assert net.self_attention_lat.embed_dim == 512 and net.self_attention_lat.vdim == 4096
        assert net.gcn.gc.weight.shape == (512, 1024)


def test_graph_convolution_starts_uniform_within_its_bound():
    weight = CycleNet(32).gcn.gc.weight
    bound = 1024**-0.5
    assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
    assert weight.mean().abs() < 0.01 * bound


def test_latent_code_is_a_sigmoid_and_dropout_touches_it_alone(batch):
    net = CycleNet(12, **WIDTHS)
    inputs = batch["image_features"], batch["label_features"], batch["similarity"]
    first, second = net(*inputs), net(*inputs)
    assert first[0].min() >= 0 and not torch.equal(first[0], second[0])
    for one, other in zip(first[1:], second[1:], strict=True):
        assert torch.equal(one, other)
    no_dropout = CycleNet(12, dropout=0.0, **WIDTHS)
    assert torch.equal(no_dropout(*inputs)[0], no_dropout(*inputs)[0])


def test_unknown_variant():
    with pytest.raises(ValueError, match="'mmasia' or 'tomm'"):
        CycleNet(12, variant="cvpr")


def test_mlp_and_discriminator_shapes(batch):
    features, code = MLP(5, 12)(batch["labels"])
    assert features.shape == (10, 512) and code.shape == (10, 12) and code.abs().max() < 1
    probabilities = ReconstructionDiscriminator(12)(code, -code)
    assert probabilities.shape == (20,) and probabilities.min() > 0 and probabilities.max() < 1


def test_adversarial_losses_pull_apart():
    real, fake = torch.full((6,), 0.9), torch.full((6,), 0.2)
    assert discriminator_loss(real, fake).item() == pytest.approx(-torch.log(torch.tensor([0.9, 0.8])).sum().item())
    assert generator_loss(fake).item() == pytest.approx(-torch.log(torch.tensor(0.2)).item())
    # NaN is no error: the run reports the loss.
    assert discriminator_loss(real * float("nan"), fake).isnan() and generator_loss(fake * float("nan")).isnan()


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "alexnet.pt"
    torch.save(alexnet(weights=None).state_dict(), path)
    return path


def test_alexnet_hash_equals_torchvisions_alexnet_up_to_fc7(alexnet_file):
    reference = alexnet(weights=None)
    reference.load_state_dict(torch.load(alexnet_file, weights_only=True))
    reference.eval()
    net = AlexNetHash(12, weights=alexnet_file).eval()
    images = torch.randn(2, 3, 64, 64)
    features, code = net(images)
    expected = reference.classifier[:-1](torch.flatten(reference.avgpool(reference.features(images)), 1))
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(code, torch.tanh(net.hash_layer[0](features)))
    assert features.shape == (2, 4096) and code.shape == (2, 12)


def test_alexnet_hash_takes_its_own_state_dict_back(tmp_path):
    net = AlexNetHash(8, weights=None)
    torch.save(net.state_dict(), tmp_path / "model_image.pt")
    again = AlexNetHash(8, weights=str(tmp_path / "model_image.pt"))
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), again.parameters(), strict=True))
    with pytest.raises(UserError, match=r"hash_layer\.0\.weight.*shape \(8, 4096\).*\(16, 4096\).*code length"):
        AlexNetHash(16, weights=tmp_path / "model_image.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "lacks 'features.0.bias'"),
        ({"surprise": torch.zeros(1)}, "lacks"),
        ([1, 2], "no state dict"),
        ({"features.0.weight": "text"}, "no state dict"),
        (b"not a pickle at all", "damaged, or not a state dict saved by torch.save"),
    ],
)
def test_unusable_weights_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        AlexNetHash(8, weights=path)
    assert str(caught.value).startswith(f"--weights {path}: ") and "\n" not in str(caught.value)


def test_weights_with_an_unknown_entry_are_refused(alexnet_file, tmp_path):
    state = torch.load(alexnet_file, weights_only=True)
    torch.save(state | {"extra.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"unknown entry 'extra\.weight'"):
        AlexNetHash(8, weights=tmp_path / "weights.pt")


class Boom:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_weights_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"features.0.weight": Boom()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="not a state dict"):
        AlexNetHash(8, weights=tmp_path / "weights.pt")
    assert "never run" not in capsys.readouterr().out


def test_missing_weights_file(tmp_path):
    with pytest.raises(UserError, match=r"^--weights .*nowhere\.pt: there is no such file\. Use imagenet, none or a"):
        AlexNetHash(8, weights=tmp_path / "nowhere.pt")


def test_imagenet_weights_come_through_torchvisions_api(monkeypatch, alexnet_file):
    from torchvision.models import AlexNet_Weights

    state = torch.load(alexnet_file, weights_only=True)
    monkeypatch.setattr(AlexNet_Weights, "get_state_dict", lambda self, **_: state)
    net = AlexNetHash(8)
    assert torch.equal(net.features[0].weight, state["features.0.weight"])
    assert torch.equal(net.classifier[4].weight, state["classifier.4.weight"])

    def offline(self, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(AlexNet_Weights, "get_state_dict", offline)
    with pytest.raises(UserError, match=r"--weights imagenet: .*no route to host.*--weights FILE"):
        AlexNetHash(8)
