"""From the folder of a run to its ONNX file."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import modules.trained
import search.export
from data import Options, load_data
from data.samples import sample_images
from modules import image_network
from modules.onnx_graph import store_halves
from modules.trained import load_network
from search.__main__ import main
from search.export import packed
from search.model import Model
from tests.image_trees import folder_tree
from tests.search.encode_small import BITS, SIZE, make_run, read, signs
from tests.small_networks import SmallImageNet
from training.network_codes import encode
from utils.command import MOST_PIXELS
from utils.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """Runs load the small network instead of a real one."""
    monkeypatch.setattr(modules.trained, "image_network", SmallImageNet)


@pytest.fixture
def run_folder(tmp_path, small):
    """The folder of a run of the small network, 12 bits."""
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run of the small network on a folder of photos; {precision: (its file, what the command printed)}."""
    root = tmp_path_factory.mktemp("exported")
    folder_tree(root / "photos")
    run, found = make_run(root / "run", root=str(root / "photos")), {}
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(modules.trained, "image_network", SmallImageNet)
        content = search.export.to_onnx(packed(*load_network(run)))  # slow: once for all
        patches.setattr(search.export, "to_onnx", lambda network: content)
        for precision in ("float32", "float16", "int8"):
            path = root / f"{precision}.onnx"
            command = ["export", str(run), "-o", str(path), "--precision", precision]
            with contextlib.redirect_stdout(io.StringIO()) as output:
                assert main(command) == 0
            found[precision] = (path, output.getvalue())
    return run, found


# ---- Reading a run ----


def test_an_ambiguous_code_length_is_refused(tmp_path, small):
    folder = make_run(tmp_path / "run", 12, 24)
    with pytest.raises(UserError, match=r"models of 12, 24 bits; choose one with --code-length"):
        load_network(folder)
    with pytest.raises(UserError, match=r"--code-length 32.*it has 12, 24 bits"):
        load_network(folder, 32)
    assert load_network(folder, 24)[1]["code_length"] == 24


def test_loading_draws_no_random_numbers_and_evaluates(run_folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    network, settings = load_network(run_folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert all(value.dtype == torch.float32 and not value.is_meta for value in network.state_dict().values())
    assert settings == {
        "backbone": "alexnet",
        "code_length": BITS,
        "image_size": SIZE,
        "dataset": "folder",
        "method": "main_mmasia",
    }


def test_old_runs_without_a_backbone_setting(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    del config["settings"]["backbone"]
    (run_folder / "config.json").write_text(json.dumps(config))
    assert load_network(run_folder)[1]["backbone"] == "alexnet"


def test_another_backbone_and_weights_in_half_precision(tmp_path):
    folder = make_run(tmp_path / "run", 8, backbone="resnet18")
    network = image_network("resnet18", 8, weights=None).eval()
    torch.save(network.half().state_dict(), folder / "model_image-8bits.pt")
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.equal(load_network(folder)[0](images)[1], network.float()(images)[1])


def spoil(folder: Path, how: str) -> None:
    model = folder / f"model_image-{BITS}bits.pt"
    state = torch.load(model, weights_only=True)
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "damaged config":
        (folder / "config.json").write_text("{")
    elif how == "no settings":
        (folder / "config.json").write_text("{}")
    elif how == "wrong settings":
        (folder / "config.json").write_text(json.dumps({"settings": {"dataset": "folder", "image_size": "64"}}))
    elif how == "missing settings":
        (folder / "config.json").write_text(json.dumps({"settings": {"dataset": "folder"}}))
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
    elif how == "not finite":
        torch.save(state | {"net.3.bias": state["net.3.bias"] / 0}, model)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", r"config.json: there is no such file"),
        ("damaged config", "cannot be read as JSON"),
        ("no settings", "holds no settings"),
        ("wrong settings", "'image_size' is '64'"),
        ("missing settings", "has no dataset or image_size"),
        ("no model", r"has no model_image-\*bits.pt"),
        ("cut short", r"model_image-12bits.pt: damaged"),
        ("code", r"model_image-12bits.pt: damaged"),
        ("a tensor", "not the model of alexnet with 12 bits"),
        ("missing entry", r'alexnet with 12 bits \(Missing key\(s\) in state_dict: "net.3.bias"'),
        ("further entry", r'\(Unexpected key\(s\) in state_dict: "classifier.6.bias"'),
        ("another shape", r"\(size mismatch for hash_layer.0.bias: .*\); restore it or choose another run"),
        ("not finite", "not finite"),
    ],
)
def test_a_wrong_model_is_refused_in_one_line(how, message, run_folder, tmp_path, capsys):
    spoil(run_folder, how)
    with pytest.raises(UserError, match=message):
        load_network(run_folder)
    assert main(["export", str(run_folder), "-o", str(tmp_path / "model.onnx")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m search export: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "model.onnx").exists()


# ---- The file ----


def test_codes_are_those_of_the_evaluation_of_the_dataset(exported, tmp_path):
    run, files = exported
    photos, model = run.parent / "photos", files["float32"][0]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(modules.trained, "image_network", SmallImageNet)
        network, _ = load_network(run)
    assert main(["encode", str(model), str(photos), "-o", str(tmp_path / "codes.npz")]) == 0
    content = read(tmp_path / "codes.npz")
    split = load_data("folder", photos, Options(image_size=SIZE, cache="off", num_workers=1))
    own = {}
    for half in (split.query, split.database):
        codes = encode(network, half, batch_size=7, device=torch.device("cpu"))
        own |= dict(zip((str(photos / name) for name in half.paths), codes.numpy(), strict=True))
    assert list(content["names"]) == sorted(own)
    assert np.array_equal(signs(content), [own[name] for name in content["names"]])
    assert len(np.unique(content["codes"], axis=0)) > 1  # the small network does tell images apart
    assert str(content["fingerprint"]) == Model.load(model).fingerprint


def test_precisions(exported):
    _, files = exported
    sizes = {precision: path.stat().st_size for precision, (path, _) in files.items()}
    weights = sum(value.numel() for value in SmallImageNet("alexnet", BITS).state_dict().values())
    assert sizes["float32"] - sizes["float16"] > 1.9 * weights
    models = {precision: Model.load(path) for precision, (path, _) in files.items()}
    assert len({model.fingerprint for model in models.values()}) == 3
    assert {model.settings["precision"] for model in models.values()} == set(files)
    for precision, (_, output) in files.items():
        assert "Written to" in output and "Compared with torch on 30 images: " in output
        share = float(output.split("images: ")[1].split("%")[0]) / 100
        assert share == 0 if precision == "float32" else share < 0.1
    text = files["float32"][0].read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in text and b"site-packages" not in text


def test_the_dataset_of_the_run_and_images(exported, run_folder, photos, tmp_path, capsys, monkeypatch):
    """Images in memory are sampled; a dataset that is not there is said, and is needed for int8 only."""
    monkeypatch.setattr(search.export, "NUM_COMPARED", 10)
    digits = make_run(tmp_path / "digits", dataset="digits")
    content = Path(exported[1]["float32"][0]).read_bytes()
    settings = json.loads((digits / "config.json").read_text())["settings"]
    images = sample_images(settings, SIZE, SIZE, 10, [], MOST_PIXELS)
    split = load_data("digits", tmp_path, Options(image_size=SIZE, seed=settings["seed"]))
    stored = split.database.pixels(np.linspace(0, 1496, 10).astype(int))
    assert np.array_equal(images, torch.stack(stored).permute(0, 2, 3, 1).numpy())

    monkeypatch.setattr(search.export, "to_onnx", lambda network: content)
    monkeypatch.chdir(tmp_path)  # the run's folder of images is not here
    output = str(tmp_path / "model.onnx")
    assert main(["export", str(run_folder), "-o", output]) == 0
    assert "Not compared with torch: the dataset of the run was not found; name images with --images." in (
        capsys.readouterr().out
    )
    assert main(["export", str(run_folder), "-o", output, "--precision", "int8"]) == 2
    assert "--precision int8: the dataset of the run was not found; name images" in capsys.readouterr().err
    assert main(["export", str(digits), "-o", output, "--images", str(photos)]) == 0
    assert "Compared with torch on 10 images: 0.0000% of the bits differ" in capsys.readouterr().out
    (tmp_path / "bad.png").write_text("no image")
    assert main(["export", str(digits), "-o", output, "--images", str(tmp_path / "bad.png")]) == 2
    assert "bad.png: no image could be read" in capsys.readouterr().err


def test_weights_beyond_half_precision(exported):
    files = exported[1]
    graph = search.export.onnx.load(str(files["float32"][0]))
    (value,) = [value for value in graph.graph.initializer if value.name == "network.net.3.bias"]
    large = search.export.numpy_helper.to_array(value) + np.float32(1e5)
    value.CopyFrom(search.export.numpy_helper.from_array(large, value.name))
    with pytest.raises(UserError, match=r"'network.net.3.bias' has weights beyond 65,504"):
        store_halves(graph)
