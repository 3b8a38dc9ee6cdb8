"""The ONNX file of a model, read without torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import search.model
from modules import AlexNetHash
from search.export import packed, to_onnx
from search.model import Model, sealed
from tests.search.tiny_model import SIZE, tiny_model
from utils.errors import UserError

BATCHES = (1, 2, 3, 4, 5, 7, 8, 16, 31, 33, 64, 128)


def images_of(count, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def alexnet():
    """AlexNet with narrow linear layers and random weights, so that its 32 bits are near 0 on average."""
    torch.manual_seed(1)
    with torch.device("meta"):  # its own linear layers have 54 million weights
        module = AlexNetHash(32, weights=None)
    module.classifier = nn.Sequential(nn.Linear(9216, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    module.hash_layer = nn.Sequential(nn.Linear(256, 32), nn.Tanh())
    module.features.to_empty(device="cpu")
    for layer in module.features:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    settings = {"backbone": "alexnet", "code_length": 32, "image_size": 64, "dataset": "folder", "method": "none"}
    network = packed(module.requires_grad_(False), settings)
    images = torch.from_numpy(images_of(16, 64))
    pixels = images.permute(0, 3, 1, 2).float() * network.scale + network.bias
    layer = network.network.hash_layer[0]
    layer.bias.copy_(-layer.weight @ network.network(pixels)[0].mean(0))
    return network, Model.from_bytes(to_onnx(network), "alexnet")


def test_the_outputs_of_an_image_do_not_depend_on_the_batch(alexnet):
    """AlexNet, bit for bit, on the machine of the test: a store has codes of images alone and in batches."""
    _, model = alexnet
    images = images_of(max(BATCHES), 64)
    codes, outputs = model.session.run(("codes", "outputs"), {"images": images})
    assert len(np.unique(codes, axis=0)) > 100
    for size in BATCHES:
        start = max(BATCHES) - size  # at another place of the batch, too
        part, own = model.session.run(("codes", "outputs"), {"images": images[start:]})
        assert np.array_equal(own, outputs[start:]) and np.array_equal(part, codes[start:])


def test_the_codes_are_those_of_torch(alexnet):
    network, model = alexnet
    images = images_of(32, 64, seed=1)
    codes, outputs = network(torch.from_numpy(images))
    own = model.session.run(("outputs",), {"images": images})[0]
    assert np.abs(own - outputs.numpy()).max() < 1e-6
    assert np.bitwise_count(model.codes(images) ^ codes.numpy()).sum() <= 1
    assert np.array_equal(model.codes(images), np.packbits(own >= 0, axis=1))


def test_bit_order_and_the_sign_of_zero():
    class Given(nn.Module):
        def forward(self, images):
            row = torch.tensor([0.5, -0.5, 0.0, -0.0, -1e-30, 1.0, -1.0, -1.0, -0.1, 0.1])
            return None, row.repeat(len(images), 1)

    codes, _ = packed(Given(), {"code_length": 10})(torch.from_numpy(images_of(3, 8)))
    assert codes.dtype == torch.uint8 and codes.tolist() == [[0b10110100, 0b01000000]] * 3


def test_what_a_model_says_of_itself(tmp_path):
    model = Model.from_bytes(tiny_model(12, 32), "tiny")
    assert (model.code_length, model.image_size, model.shorter_side) == (12, 32, 37)
    assert model.codes(images_of(3)).shape == (3, 2) and model.codes(images_of(0)).shape == (0, 2)
    (tmp_path / "model.onnx").write_bytes(model.content)
    assert Model.load(tmp_path / "model.onnx").fingerprint == model.fingerprint


def edited(change):
    """The content of a model file whose graph was changed before it was sealed."""
    model = onnx.load_from_string(tiny_model())
    change(model)
    model.metadata_props.pop()  # the old digest, which a parser takes for metadata
    return sealed(model.SerializeToString())


def test_a_network_that_gives_no_number_is_refused():
    def spoil(model):
        for value in model.graph.initializer:
            if value.name == "bias":
                value.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(value) * np.float32("nan"), "bias"))

    with pytest.raises(UserError, match="bad: an output of the network is not a number; use another model"):
        Model.from_bytes(edited(spoil), "bad").codes(images_of(1))


def set_property(name, value):
    def change(model):
        for entry in model.metadata_props:
            if entry.key == name:
                entry.value = value

    return change


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short, or not a file of `python -m search export`"),
        (b"PK\x03\x04" + bytes(300), "cut short, or not a file of"),
        (tiny_model()[:-1], "cut short, or not a file of"),
        (sealed(b"no protobuf"), "cannot be read"),
        (edited(set_property("format", "schn-onnx-0")), "written by another version"),
        (edited(set_property("decoding", "1")), "written by another version"),
        (edited(set_property("settings", '{"code_length": "12"}')), "written by another version"),
        (edited(set_property("settings", "{")), "cannot be read"),
    ],
)
def test_another_file_is_refused_in_one_sentence(content, message, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Model.load(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert "export the model again" in str(caught.value)


def test_a_flipped_bit_anywhere_is_noticed():
    content = tiny_model()
    random = np.random.default_rng(0)
    for place in [*range(40), *range(len(content) - 150, len(content)), *random.integers(0, len(content), 100)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        with pytest.raises(UserError, match="export the model again"):
            Model.from_bytes(bytes(damaged), "model.onnx")


def test_what_is_no_file_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"gone.onnx: cannot be read \(No such file or directory\); name a"):
        Model.load("gone.onnx")
    with pytest.raises(UserError, match=r"Is a directory\); name a file of `search export`"):
        Model.load(tmp_path)


def test_devices(monkeypatch):
    assert "CUDAExecutionProvider" not in Model.from_bytes(tiny_model(), "tiny", "cpu").session.get_providers()
    with pytest.raises(UserError, match=r"--device tpu: not a device; use auto, cpu or cuda"):
        Model.from_bytes(tiny_model(), "tiny", "tpu")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="install onnxruntime-gpu"):
        Model.from_bytes(tiny_model(), "tiny", "cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    # Not TF32, onnxruntime's default, which keeps 10 bits of a number.
    assert search.model._providers("auto")[0] == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert search.model._providers("cpu") == ["CPUExecutionProvider"]


CODE = """
import sys
from search.__main__ import main
main(["encode", *sys.argv[1:]])
assert not {"torch", "torchvision", "matplotlib", "lancedb"} & sys.modules.keys(), sys.modules.keys()
"""


def test_encoding_needs_no_torch(model_file, photos, tmp_path):
    command = [sys.executable, "-c", CODE, str(model_file), str(photos), "-o", str(tmp_path / "codes.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "30 images in 12 bits: written to" in done.stdout
