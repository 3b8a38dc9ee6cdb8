"""The recipes of the baselines on the embedded digits, with a small network."""

import json
import re

import pytest
import torch

import main_mmasia
import run
from baselines import adsh, symmetric
from data import Options, data_loader, load_data
from modules import image_network, trained
from modules.discrete import draw_sample
from modules.trained import load_network
from tests.small_networks import SmallImageNet, shrink
from training import progress, sweep
from training.run_folder import RunFolder
from training.settings import BASELINES, METHODS, Settings
from utils.errors import UserError
from utils.evaluate import mean_average_precision
from utils.runs import ROLES, read_results

FLAGS = ["--dataset", "digits", "--image-size", "16", "--num-samples", "300", "--batch-size", "32", "--lr", "0.001"]
FLAGS += ["--max-epoch", "2", "--max-iter", "6", "--eval-iter", "2", "--save-iter", "1", "--code-length", "12"]
SYMMETRIC = tuple(method for method in BASELINES if method != "adsh")


@pytest.fixture
def small(monkeypatch):
    for recipe in (adsh, symmetric):
        shrink(monkeypatch, recipe, dropout=0.2)


def train(logs, *flags):
    assert run.main([*FLAGS, "--logs", str(logs), *flags]) == 0
    (folder,) = logs.iterdir()
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder):
    """The four code files by role."""
    return {role: torch.load(next(folder.glob(f"*-{role}.t")), weights_only=True) for role in ROLES}


PARTS = {
    "adsh": {"similarity", "quantisation"},
    "dpsh": {"pairs", "quantisation"},
    "hashnet": {"similar", "dissimilar"},
    "csq": {"centre", "quantisation"},
    "greedyhash": {"classification", "quantisation"},
    "orthohash": {"classification"},
}


@pytest.mark.parametrize("method", BASELINES)
def test_each_method_learns_the_digits(method, tmp_path, small, capsys):
    folder = train(tmp_path, "--method", method, "--max-iter", "10", "--max-epoch", "3")
    assert folder.name.startswith(f"{method}-digits-")
    rows = metrics(folder)
    assert rows[0]["loss"].keys() == PARTS[method]
    assert [row["iteration"] for row in rows if "map" in row] == [2, 4, 6, 8, 10]
    losses = [sum(row["loss"].values()) for row in rows]
    assert losses[-1] < 0.9 * losses[0], losses
    (result,) = read_results(folder)
    assert result["map"]["network"]["expected"] > 0.4  # by chance 0.1
    assert result["best"]["expected"] == max(row["map"] for row in rows if "map" in row)
    output = capsys.readouterr()
    assert f"{result['map']['network']['expected']:.4f}" in output.out


@pytest.mark.parametrize("method", SYMMETRIC)
def test_a_symmetric_method_has_the_networks_codes_alone(method, tmp_path, small, capsys):
    folder = train(tmp_path, "--method", method, "--max-iter", "2")
    (result,) = read_results(folder)
    assert result["map"].keys() == {"network"} and result["never_drawn"] == 0
    assert result["map"]["network"].keys() == {"expected", "stable"}
    codes = tensors(folder)
    assert codes["database_code"].shape == (1497, 12) and set(codes["database_code"].unique().tolist()) == {-1, 1}
    expected = mean_average_precision(
        codes["query_code"], codes["database_code"], codes["query_targets"], codes["database_targets"]
    )
    assert result["map"]["network"]["expected"] == pytest.approx(expected) == pytest.approx(result["best"]["expected"])
    assert next(folder.glob("*-query_code.t")).name.startswith(f"digits-12bits-{expected:.4f}-")
    for row in metrics(folder):
        assert len(row["bit_mean"]) == 12 and 0 < row["distinct"] <= 1
    output = capsys.readouterr()
    assert "mAP of the network codes" in output.err
    assert output.out.splitlines()[2].split()[:4] == [method, "12", f"{expected:.4f}", f"{expected:.4f}"]


def test_adsh_learns_the_codes_of_all_rows(tmp_path, small):
    folder = train(tmp_path, "--method", "adsh", "--max-iter", "2", "--num-samples", "60")
    (result,) = read_results(folder)
    assert result["map"].keys() == {"learned", "learned_filled", "network"} and result["never_drawn"] == 0
    assert set(tensors(folder)["database_code"].unique().tolist()) == {-1, 1}


@pytest.mark.parametrize("method", BASELINES)
def test_the_saved_network_gives_the_saved_codes(method, tmp_path, small, monkeypatch):
    """As search loads it: it has the layers of `image_network` and nothing else."""
    folder = train(tmp_path, "--method", method, "--max-iter", "2")
    monkeypatch.setattr(trained, "image_network", SmallImageNet)
    network = load_network(folder)[0]
    split = load_data("digits", "unused", Options(seed=999, image_size=16))
    query = torch.stack([image for image, _, _ in split.query])
    with torch.inference_mode():
        _, code = network(query)
    assert torch.equal(code.sign(), tensors(folder)["query_code"]) and code.abs().max() <= 1


def test_orthohash_folds_its_batch_norm_into_a_real_network(tmp_path):
    """The last batch has one image, and the network is the selected iteration's."""
    flags = ["--backbone", "squeezenet1_0", "--image-size", "32", "--num-samples", "33", "--max-epoch", "1"]
    flags += ["--max-iter", "1", "--save-iter", "0", "--num-query", "20", "--validate", "30"]
    folder = train(tmp_path, "--method", "orthohash", *flags)
    state = torch.load(folder / "model_image-12bits.pt", weights_only=True)
    with torch.device("meta"):
        assert state.keys() == image_network("squeezenet1_0", 12, weights=None).state_dict().keys()
    split = load_data("digits", "unused", Options(seed=999, image_size=32, num_query=20))
    query = torch.stack([image for image, _, _ in split.query])
    with torch.inference_mode():
        _, code = load_network(folder)[0](query)
    assert torch.equal(code.sign(), tensors(folder)["query_code"])


@pytest.mark.parametrize("method", ["dpsh", "greedyhash", "orthohash", "adsh"])
def test_resumed_equals_unbroken(method, tmp_path, small, monkeypatch, capsys):
    flags = ("--method", method, "--max-iter", "4", "--augment", "crop", "--validate", "100")
    unbroken = train(tmp_path / "unbroken", *flags)
    passes, end_pass = [], progress.Progress.end_pass

    def broken(self, *arguments):
        passes.append(arguments)
        if len(passes) == 6:  # the last pass of the third iteration
            raise UserError("the end of the disk")
        return end_pass(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "end_pass", broken)
        assert run.main([*FLAGS, "--logs", str(tmp_path / "broken"), *flags]) == 2
    (folder,) = (tmp_path / "broken").iterdir()
    assert len(metrics(folder)) == 2
    assert run.main(["--resume", str(folder)]) == 0
    one, other = (
        ([row | {"seconds": 0} for row in [*metrics(path), *read_results(path)]], tensors(path))
        for path in (unbroken, folder)
    )
    assert one[0] == other[0] and len(one[0]) == 5
    assert all(torch.equal(one[1][role], other[1][role]) for role in ROLES)
    states = [torch.load(path / "model_image-12bits.pt", weights_only=True) for path in (unbroken, folder)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("method", ["dpsh", "orthohash"])
def test_a_run_of_two_code_lengths_resumes_after_the_first(method, tmp_path, small, monkeypatch):
    flags = ("--method", method, "--max-iter", "2")
    with monkeypatch.context() as patch:
        patch.setattr(symmetric, "train", stop_at(16, symmetric.train))
        assert run.main([*FLAGS, *flags, "--code-length", "12,16", "--logs", str(tmp_path)]) == 2
    (folder,) = tmp_path.iterdir()
    assert run.main(["--resume", str(folder)]) == 0
    assert [row["code_length"] for row in read_results(folder)] == [12, 16]


def stop_at(code_length, train_function):
    def train_or_stop(run_folder, bits, split):
        if bits == code_length:
            raise UserError("no more")
        return train_function(run_folder, bits, split)

    return train_or_stop


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_starts_alike_and_sees_the_same_images(method, tmp_path, monkeypatch):
    """Initial weights of the image network, and the rows and pixels of every batch, are MM Asia's."""
    seen = {}
    for name, main in (("main_mmasia", main_mmasia), (method, adsh if method == "adsh" else symmetric)):
        built = shrink(monkeypatch, main)
        images, starts = [], []
        finish = data_loader.BatchLoader._finish

        def watched(self, pixels, index, images=images, starts=starts, built=built, finish=finish):
            if self.channels_last:  # a training batch
                images.append((index.clone(), pixels.clone()))
                if not starts:
                    starts.extend(value.clone() for value in built["image_network"][0].hash_layer[0].parameters())
                    starts.extend(value.clone() for value in built["image_network"][0].net.parameters())
            return finish(self, pixels, index)

        settings = Settings.for_dataset(
            "digits", method=name, logs=str(tmp_path), image_size=16, num_samples=60, max_iter=2, augment="crop"
        )
        with monkeypatch.context() as patch:
            patch.setattr(data_loader.BatchLoader, "_finish", watched)
            split = load_data("digits", "unused", Options(seed=0, image_size=16))
            main.train(RunFolder(settings, torch.device("cpu")), 8, split)
        seen[name] = images, starts
    (one, one_start), (other, other_start) = seen.values()
    assert len(one) == len(other) == 2 * 3 * 1
    for (rows, pixels), (other_rows, other_pixels) in zip(one, other, strict=True):
        assert torch.equal(rows, other_rows) and torch.equal(pixels, other_pixels)
    assert all(torch.equal(*pair) for pair in zip(one_start, other_start, strict=True))
    drawn = draw_sample(len(split.database), 60, settings.seed, 0)
    assert torch.equal(one[0][0].sort().values, drawn)


def test_the_schedule_of_hashnet_and_the_margin_of_orthohash(tmp_path, small, monkeypatch):
    shares = []
    forward = symmetric.HashNet.forward
    monkeypatch.setattr(
        symmetric.HashNet, "forward", lambda self, *given: shares.append(given[3]) or forward(self, *given)
    )
    train(tmp_path, "--method", "hashnet", "--max-iter", "2", "--max-epoch", "2", "--batch-size", "300")
    assert shares == [0, 0.25, 0.5, 0.75]
    split = load_data("digits", "unused", Options(seed=0, image_size=16))
    photographs = Settings.for_dataset("folder", method="orthohash", preset="cifar-10-cpu")
    presets = {dataset: Settings.for_dataset(dataset, method="orthohash") for dataset in ("cifar-10", "digits")}
    for settings, margin in ((presets["cifar-10"], 0.3), (photographs, 0.3), (presets["digits"], 0.2)):
        assert symmetric.loss_of(settings, 12, split).margin == margin


@pytest.mark.parametrize("method", ["orthohash", "adsh"])
def test_bfloat16_trains(method, tmp_path, small):
    folder = train(tmp_path, "--method", method, "--precision", "bfloat16", "--max-iter", "3")
    assert read_results(folder)[0]["map"]["network"]["expected"] > 0.2


# ---- The command line ----


def test_both_stays_the_two_mains_and_run_knows_every_method():
    assert METHODS == ("main_mmasia", "main_tomm")
    assert run.MODULES.keys() == {*METHODS, *BASELINES} and set(symmetric.METHODS) == set(SYMMETRIC)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "dpsh", "--gamma", "5"], "--gamma: dpsh has nothing that it changes; it is a flag of main_mm"),
        (["--method", "adsh", "--update-all-rows"], "--update-all-rows: adsh has nothing that it changes"),
        (["--method", "csq", "--milestones", "3"], "--milestones: csq .* a flag of main_tomm"),
        (["--method", "csq", "--margin", "0.5"], "--margin: csq .* a flag of orthohash"),
        (["--method", "hashne"], "did you mean hashnet"),
    ],
)
def test_flags_without_effect_are_refused(flags, message, tmp_path, capsys):
    assert run.main([*FLAGS, *flags, "--logs", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_symmetric_method_trains_in_one_process(tmp_path, small, monkeypatch):
    settings = Settings.for_dataset("digits", method="dpsh", logs=str(tmp_path), image_size=16)
    split = load_data("digits", "unused", Options(seed=0, image_size=16))
    folder = RunFolder(settings, torch.device("cpu"))
    monkeypatch.setattr("utils.distributed.size", lambda: 2)
    with pytest.raises(UserError, match="--method dpsh: trains in one process"):
        symmetric.train(folder, 12, split)
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_a_baseline_prints_its_table(tmp_path, small, capsys, monkeypatch):
    class InThisProcess:
        """A cell that trains here, so that it has the small network."""

        def __init__(self, cell, threads=None):
            self.status = run.main([*cell.settings.as_flags(), "--cell", str(cell.folder)])

        def wait(self):
            return self.status

    monkeypatch.setattr(sweep, "start_process", InThisProcess)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the cells are in a thread of the sweep, not in a process
    flags = ["--method", "csq", "--seeds", "1,2", "--max-iter", "1", "--logs", str(tmp_path)]
    assert run.main([*FLAGS, *flags]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("csq")]
    # The table of the sweep comes after those of its cells; the columns of learned codes are empty.
    assert [(line[:3], len(line)) for line in lines[-2:]] == [(["csq", seed, "12"], 6) for seed in "12"]
