"""Other image networks than AlexNet."""

import sys

import pytest
import torch
from torchvision.models import get_model, get_model_weights

import main_mmasia
import run
from modules import CycleNet, image_network
from tests.small_networks import constructors
from utils.errors import UserError

WIDTHS = {"alexnet": 4096, "resnet18": 512, "resnet50": 2048, "vit_b_16": 768, "squeezenet1_0": 512}
LAST = {"resnet18": "fc", "resnet50": "fc", "vit_b_16": "heads"}


@pytest.mark.parametrize("backbone", WIDTHS)
def test_each_backbone_gives_features_and_codes(backbone):
    with torch.device("meta"):
        network = image_network(backbone, 12, weights=None, image_size=64)
        features, code = network.eval()(torch.empty(2, 3, 64, 64))
    assert features.shape == (2, WIDTHS[backbone]) and code.shape == (2, 12)
    assert network.feature_dim == WIDTHS[backbone]


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_16", "squeezenet1_0"])
def test_features_are_what_torchvision_gives_its_last_layer(backbone, tmp_path, monkeypatch):
    torch.manual_seed(0)
    options = {"image_size": 32} if backbone == "vit_b_16" else {}
    reference = get_model(backbone, weights=None, **options).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    network = image_network(backbone, 8, weights=tmp_path / "weights.pt", image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    features, code = network(images)
    if backbone == "squeezenet1_0":  # its last layer is a convolution: the features are averaged before it
        expected = reference.features(images).mean(dim=(2, 3)) / 32
    else:
        setattr(reference, LAST[backbone], torch.nn.Identity())
        expected = reference(images)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(code, torch.tanh(network.hash_layer[0](features)))

    torch.save(network.state_dict(), tmp_path / "model_image.pt")
    again = image_network(backbone, 8, weights=tmp_path / "model_image.pt", image_size=32)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))
    with pytest.raises(UserError, match="same code length"):
        image_network(backbone, 9, weights=tmp_path / "model_image.pt", image_size=32)

    # "imagenet" goes through torchvision's weights API.
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    monkeypatch.setattr(type(get_model_weights(backbone)["IMAGENET1K_V1"]), "get_state_dict", lambda self, **_: state)
    assert torch.equal(image_network(backbone, 8, image_size=32)(images)[0], network.train()(images)[0])


def test_weights_of_another_backbone_are_refused(tmp_path):
    torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"state dict of torchvision's resnet50"):
        image_network("resnet50", 8, weights=tmp_path / "weights.pt")


def test_squeezenet_has_no_dropout():
    network = image_network("squeezenet1_0", 8, weights=None, image_size=32).train()
    images = torch.randn(2, 3, 32, 32)
    features, code = network(images)
    assert torch.equal(network(images)[1], code) and torch.isfinite(features).all() and (features >= 0).all()
    assert not any(isinstance(module, torch.nn.Dropout) for module in network.modules())


def test_unknown_backbones_and_image_sizes_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="--backbone vgg: unknown; use one of alexnet, resnet18, resnet50, vit_b_16"):
        image_network("vgg", 8)
    with pytest.raises(UserError, match="--image-size 100: vit_b_16 needs a multiple of 16"):
        image_network("vit_b_16", 8, weights=None, image_size=100)
    for backbone, smallest in (("alexnet", 63), ("squeezenet1_0", 21)):
        with pytest.raises(UserError, match=f"--image-size {smallest - 1}: {backbone} needs {smallest} or more"):
            image_network(backbone, 8, weights=None, image_size=smallest - 1)
        with torch.device("meta"):
            network = image_network(backbone, 8, weights=None, image_size=smallest)
            assert network(torch.empty(2, 3, smallest, smallest))[1].shape == (2, 8)
    assert run.main(["--backbone", "resnet19", "--logs", str(tmp_path)]) == 2
    assert "did you mean resnet18" in capsys.readouterr().err


def test_the_width_of_the_features_reaches_the_cycle_network(monkeypatch, tmp_path):
    built = []

    def cycle_net(*arguments, image_dim, **options):
        built.append(CycleNet(*arguments, image_dim=image_dim, label_dim=16, latent_dim=20, hidden_dim=14, **options))
        return built[-1]

    monkeypatch.setattr(main_mmasia, "CycleNet", cycle_net)
    monkeypatch.setattr(main_mmasia, "MLP", constructors()["MLP"])
    flags = ["--dataset", "digits", "--backbone", "resnet18", "--image-size", "32", "--num-samples", "10"]
    flags += ["--max-iter", "1", "--code-length", "8", "--save-iter", "0", "--num-query", "30", "--batch-size", "300"]
    assert run.main([*flags, "--method", "main_mmasia", "--logs", str(tmp_path)]) == 0
    assert built[0].self_attention_lat.vdim == 512


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3, "best": None},
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
        lambda state: {"state_dict": {f"model.net.{name}": value for name, value in state.items()}},  # Lightning
        lambda state: {
            "model_state_dict": {
                f"module.backbone.{name}": value
                for name, value in state.items()
                if not name.startswith(("fc.", "classifier."))  # a trained model_image has no such layer
            }
        },
    ],
    ids=["DataParallel", "checkpoint", "model", "Lightning", "module.backbone."],
)
@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_0"])
def test_weights_in_a_checkpoint_are_unwrapped(wrap, backbone, tmp_path):
    state = get_model(backbone, weights=None).state_dict()
    torch.save(wrap(state), tmp_path / "weights.pt")
    network = image_network(backbone, 8, weights=tmp_path / "weights.pt", image_size=32)
    own = {name.removeprefix("backbone."): value for name, value in network.state_dict().items()}
    head = ("fc.", "classifier.")
    assert all(torch.equal(own[name], value) for name, value in state.items() if not name.startswith(head))


def test_what_is_ambiguous_is_not_unwrapped(tmp_path):
    path = tmp_path / "weights.pt"
    state = get_model("squeezenet1_0", weights=None).state_dict()
    for content, message in (
        ({"state_dict": state, "model": state}, "holds no state dict"),
        ({f"module.{name}": value for name, value in state.items()} | {"loss.weight": torch.zeros(1)}, "lacks"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            image_network("squeezenet1_0", 8, weights=path, image_size=32)


def test_weights_of_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    state = get_model("squeezenet1_0", weights=None).state_dict()
    safetensors.save_file(state, path)
    own = image_network("squeezenet1_0", 8, weights=path, image_size=32).state_dict()
    assert torch.equal(own["backbone.features.0.weight"], state["features.0.weight"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"--weights .*weights\.safetensors: it is damaged; use imagenet"):
        image_network("squeezenet1_0", 8, weights=path, image_size=32)
    path.unlink()
    with pytest.raises(UserError, match=r"there is no such file; use imagenet"):
        image_network("squeezenet1_0", 8, weights=path, image_size=32)


def test_safetensors_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="this format needs the package safetensors; pip install safetensors"):
        image_network("squeezenet1_0", 8, weights=tmp_path / "weights.safetensors", image_size=32)
