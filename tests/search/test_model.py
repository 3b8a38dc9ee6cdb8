"""The model of a run and its export."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import search.model
from modules import AlexNetHash, image_network
from search.__main__ import main
from search.model import export_model, fingerprint, load_model
from tests.search.encode_small import BITS, SIZE, make_run, read, signs
from tests.small_networks import SmallImageNet
from utils.errors import UserError


def test_an_ambiguous_code_length_is_refused(tmp_path, small, photos, capsys):
    folder = make_run(tmp_path / "run", 12, 24)
    with pytest.raises(UserError, match=r"models of 12, 24 bits; choose one with --code-length"):
        load_model(folder)
    with pytest.raises(UserError, match=r"--code-length 32.*it has 12, 24 bits"):
        load_model(folder, 32)
    assert load_model(folder, 24).code_length == 24
    assert main(["encode", str(folder), str(photos), "--code-length", "24", "-o", str(tmp_path / "codes.npz")]) == 0
    assert read(tmp_path / "codes.npz")["codes"].shape == (30, 3)


def test_loading_draws_no_random_numbers_and_evaluates(run_folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = load_model(run_folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.model.training
    assert all(value.dtype == torch.float32 and not value.is_meta for value in model.model.state_dict().values())
    assert model.settings["dataset"] == "folder" and (model.image_size, model.shorter_side) == (SIZE, 37)


def test_old_runs_without_a_backbone_setting(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    del config["settings"]["backbone"]
    (run_folder / "config.json").write_text(json.dumps(config))
    assert load_model(run_folder).settings["backbone"] == "alexnet"


def test_another_backbone(tmp_path):
    folder = tmp_path / "run"
    make_run(folder, 8, backbone="resnet18")
    network = image_network("resnet18", 8, weights=None).eval()
    torch.save(network.state_dict(), folder / "model_image-8bits.pt")
    images = torch.randn(2, 3, SIZE, SIZE)
    loaded = load_model(folder)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images)[1], network(images)[1])
    export_model(loaded, tmp_path / "model.pt")  # batch normalisation counts in whole numbers, which stay so
    again = load_model(tmp_path / "model.pt")
    assert again.settings["backbone"] == "resnet18"
    assert again.model.state_dict()["backbone.bn1.num_batches_tracked"].dtype == torch.int64


def spoil(folder: Path, how: str) -> None:
    model = folder / f"model_image-{BITS}bits.pt"
    state = torch.load(model, weights_only=True)
    if how == "no folder":
        (folder / "config.json").unlink()
        model.unlink()
        folder.rmdir()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "damaged config":
        (folder / "config.json").write_text("{")
    elif how == "no settings":
        (folder / "config.json").write_text("{}")
    elif how == "wrong settings":
        (folder / "config.json").write_text(json.dumps({"settings": {"dataset": "folder", "image_size": "64"}}))
    elif how == "no model":
        model.unlink()
    elif how == "cut short":
        model.write_bytes(model.read_bytes()[:1000])
    elif how == "code":
        torch.save({"hash_layer.0.weight": os.system}, model)
    elif how == "a tensor":
        torch.save(torch.zeros(3), model)
    elif how == "missing entry":
        torch.save({name: value for name, value in state.items() if name != "net.3.bias"}, model)
    elif how == "further entry":
        torch.save(state | {"classifier.6.bias": torch.zeros(2)}, model)
    elif how == "another shape":
        torch.save(SmallImageNet("alexnet", BITS + 1).state_dict(), model)
    elif how == "whole numbers":
        torch.save({name: value.long() for name, value in state.items()}, model)
    elif how == "not finite":
        torch.save(state | {"net.3.bias": state["net.3.bias"] / 0}, model)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", "there is no such folder"),
        ("no config", r"config.json: there is no such file"),
        ("damaged config", "cannot be read as JSON"),
        ("no settings", "holds no settings"),
        ("wrong settings", "'image_size' is '64'"),
        ("no model", r"has no model_image-\*bits.pt"),
        ("cut short", r"model_image-12bits.pt: damaged"),
        ("code", r"model_image-12bits.pt: damaged"),
        ("a tensor", "not a state dict"),
        ("missing entry", r"lacks 'net.3.bias' \(1 such\)"),
        ("further entry", "has the unknown entry 'classifier.6.bias'"),
        ("another shape", r"'hash_layer.0.weight' has shape \(13, 24\), not \(12, 24\)"),
        ("whole numbers", "has numbers of another kind"),
        ("not finite", "not finite"),
    ],
)
def test_a_wrong_model_is_refused_in_one_line(how, message, run_folder, tmp_path, photos, capsys):
    spoil(run_folder, how)
    with pytest.raises(UserError, match=message):
        load_model(run_folder)
    assert main(["encode", str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m search encode: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "codes.npz").exists()


def test_the_fingerprint_is_of_the_numbers(run_folder):
    model = load_model(run_folder)
    state = model.model.state_dict()
    assert fingerprint(state) == model.fingerprint and len(model.fingerprint) == 64
    assert fingerprint(dict(reversed(state.items()))) == model.fingerprint
    strided = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in state.items()}
    assert fingerprint(strided) == model.fingerprint
    changed = {name: value.clone() for name, value in state.items()}
    changed["net.3.bias"][0] += 1e-6
    assert fingerprint(changed) != model.fingerprint
    renamed = {name.replace("net.3", "net.4"): value for name, value in state.items()}
    assert fingerprint(renamed) != model.fingerprint


def test_an_export_replaces_the_folder_of_the_run(run_folder, photos, tmp_path, capsys):
    model = tmp_path / "model.pt"
    assert main(["export", str(run_folder), "-o", str(model)]) == 0
    content = torch.load(model, weights_only=True)
    assert content["settings"] == load_model(run_folder).settings
    assert {value.dtype for value in content["state"].values()} == {torch.float16}
    loaded = load_model(model)
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float32}
    for name, value in load_model(run_folder).model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.half().float())
    assert loaded.settings == load_model(run_folder).settings
    assert main(["encode", str(model), str(photos), "-o", str(tmp_path / "half.npz")]) == 0
    assert main(["encode", str(run_folder), str(photos), "-o", str(tmp_path / "full.npz")]) == 0
    half, full = read(tmp_path / "half.npz"), read(tmp_path / "full.npz")
    assert np.array_equal(half["names"], full["names"])
    assert (signs(half) != signs(full)).mean() < 0.05
    assert str(half["fingerprint"]) == loaded.fingerprint != str(full["fingerprint"])
    assert main(["export", str(model), "-o", str(tmp_path / "again.pt")]) == 0  # nothing more is lost
    assert load_model(tmp_path / "again.pt").fingerprint == loaded.fingerprint
    with pytest.raises(UserError, match="is a model of 12 bits"):
        load_model(model, 24)


def test_the_size_of_an_alexnet_s_export():
    with torch.device("meta"):
        state = AlexNetHash(48, weights=None).state_dict()
    assert sum(value.numel() for value in state.values()) * torch.float16.itemsize <= 120e6


def test_a_run_s_model_in_half_precision_runs_in_float32(run_folder, photos):
    path = run_folder / f"model_image-{BITS}bits.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value.half() for name, value in state.items()}, path)
    assert {value.dtype for value in load_model(run_folder).model.state_dict().values()} == {torch.float32}


def test_weights_beyond_half_precision(run_folder, tmp_path):
    model = load_model(run_folder)
    model.model.net[3].bias.data[0] = 1e5
    with pytest.raises(UserError, match=r"'net.3.bias' has weights beyond 65,504"):
        export_model(model, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"format": search.model.EXPORT_FORMAT}, [1, 2]])
def test_another_file_is_no_export(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: "):
        load_model(tmp_path / "other.pt")
