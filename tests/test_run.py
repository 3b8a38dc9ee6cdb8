"""run.py as a user calls it: what a run leaves, that it can be had again, and how it refuses bad input."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main_mmasia
import main_tomm
import run
from data import DATASETS
from data.transform import AUGMENTATIONS
from tests.small_networks import shrink
from training import command_line
from training import settings as settings_module
from utils import command

TINY = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--max-iter", "2", "--max-epoch", "1"]
ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(monkeypatch):
    for main in (main_mmasia, main_tomm):
        shrink(monkeypatch, main, dropout=0.5)


def train(logs, *flags):
    assert run.main([*TINY, "--code-length", "8", "--logs", str(logs), *flags]) == 0
    (folder,) = logs.iterdir()
    return folder


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_what_a_run_leaves(method, tmp_path, small, capsys):
    folder = train(tmp_path, "--method", method, "--code-length", "8,12")
    assert re.fullmatch(rf"{method}-digits-\d{{8}}-\d{{6}}", folder.name)
    rows = json.loads((folder / "results.json").read_text())
    assert [row["code_length"] for row in rows] == [8, 12]
    for row in rows:
        assert row["method"] == method and row["dataset"] == "digits" and row["seed"] == 999
        assert row["iterations"] == 2 and row["seconds"] > 0 and row["topk"] == -1
        assert row["map"].keys() == {"learned", "learned_filled", "network"}
        for figures in row["map"].values():
            assert figures.keys() == {"expected", "stable"} and all(0 < value <= 1 for value in figures.values())
        assert row["best"]["iteration"] == 2 and row["best"]["expected"] == row["map"]["learned"]["expected"]
        bits = row["code_length"]
        stem = f"digits-{bits}bits-{row['map']['learned']['expected']:.4f}-"
        tensors = {
            name: torch.load(folder / f"{stem}{name}.t", weights_only=True)
            for name in ("query_code", "database_code", "query_targets", "database_targets")
        }
        assert {name: tuple(value.shape) for name, value in tensors.items()} == {
            "query_code": (300, bits),
            "database_code": (1497, bits),
            "query_targets": (300, 10),
            "database_targets": (1497, 10),
        }
        assert set(tensors["query_code"].unique().tolist()) == {-1, 1}
        assert set(tensors["database_code"].unique().tolist()) == {-1, 0, 1}
        assert (folder / f"model_image-{bits}bits.pt").is_file()
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["code_length"] == [8, 12] and config["settings"]["num_samples"] == 60
    assert config["command"] and config["device"].startswith("cpu") and config["versions"]["torch"] == torch.__version__
    assert config["commit"] is None or re.fullmatch("[0-9a-f]{40}", config["commit"]["hash"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["code_length"], line["iteration"]) for line in lines] == [(8, 1), (8, 2), (12, 1), (12, 2)]
    parts = {"image", "label", "latent", "image_rec", "label_rec"}
    assert lines[0]["loss"].keys() == parts | ({"discriminator", "generator"} if method == "main_tomm" else set())
    assert len(list(folder.glob("checkpoint-*.pt"))) == 2
    output = capsys.readouterr().out
    assert "learned" in output and "network" in output and str(folder) in output
    for row in rows:
        zero = f"{row['code_length']} bits: {row['never_drawn']} database rows were never drawn"
        assert row["never_drawn"] > 1300 and zero in output


def comparable(folder):
    rows = json.loads((folder / "results.json").read_text())
    for row in rows:
        del row["seconds"]
    codes = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.t")}
    return rows, codes


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_one_seed_gives_one_result(method, tmp_path, small):
    flags = ("--method", method, "--augment", "crop")
    (rows, codes), (again_rows, again_codes), (other_rows, _) = (
        comparable(train(tmp_path / name, *flags, "--seed", seed))
        for name, seed in (("first", "1"), ("second", "1"), ("third", "2"))
    )
    assert rows == again_rows and codes.keys() == again_codes.keys() and len(codes) == 4
    assert all(torch.equal(codes[name], again_codes[name]) for name in codes)
    assert rows[0]["map"] != other_rows[0]["map"]


def test_the_real_networks_train_from_the_command_line(tmp_path):
    """One iteration of AlexNet itself, in a process of its own, its output no terminal."""
    command = [sys.executable, "run.py", "--method", "main_tomm", "--code-length", "12", "--logs", str(tmp_path)]
    tiny = ["--num-samples", "64", "--max-iter", "1", "--max-epoch", "1", "--num-query", "20", "--save-iter", "0"]
    done = subprocess.run([*command, *tiny], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "iteration 1: mAP of the learned codes" in done.stderr
    assert "batch/s" not in done.stderr and "Traceback" not in done.stderr
    (folder,) = tmp_path.iterdir()
    state = torch.load(folder / "model_image-12bits.pt", weights_only=True)
    assert state["classifier.4.weight"].shape == (4096, 4096) and state["hash_layer.0.weight"].shape == (12, 4096)


REFUSALS = [
    (["--dataset", "cifar10"], r"'?cifar10'?.*cifar-10"),
    (["--method", "main_cvpr"], r"--method.*'main_cvpr' is none of main_mmasia, main_tomm"),
    (["--method", "main_mmasi"], r"did you mean main_mmasia"),
    (["--root", "/nowhere/at/all", "--dataset", "flickr25k", "--weights", "none"], r"/nowhere/at/all"),
    (["--code-length", "0"], r"--code-length: '0' must be a whole number, 1 or more"),
    (["--code-length", "-12"], r"--code-length"),
    (["--code-length", "twelve"], r"--code-length: 'twelve' must be a whole number"),
    (["--code-length", "12,12"], r"--code-length.*names a number twice"),
    (["--code-length", ""], r"--code-length"),
    (["--num-samples", "1498"], r"--num-samples 1498.*only 1497"),
    (["--num-query", "7"], r"7.*10"),
    (["--lr", "nan"], r"--lr: 'nan' must be a number, above 0"),
    (["--lr", "0"], r"--lr.*above 0"),
    (["--alpha", "-1"], r"--alpha"),
    (["--batch-size", "1.5"], r"--batch-size: '1.5' must be a whole number"),
    (["--seed", "-1"], r"--seed"),
    (["--augment", "flip"], r"--augment.*'flip' is none of crop-flip, crop, none"),
    (["--device", "cuda:99"], r"--device cuda:99"),
    (["--device", "tpu"], r"--device tpu: not a device"),
    (["--weights", "/nowhere.pt"], r"--weights /nowhere\.pt: there is no such file"),
    (["--colour", "red"], r"unrecognized arguments: --colour red"),
    (["--max-it", "2"], r"unrecognized arguments"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSALS, ids=[" ".join(flags) for flags, _ in REFUSALS])
def test_bad_input_is_one_sentence_and_status_2(flags, message, tmp_path, capsys):
    logs = tmp_path / "logs"
    assert run.main(["--dataset", "digits", "--logs", str(logs), *flags]) == 2
    output = capsys.readouterr()
    error = output.err.strip().splitlines()[-1]
    assert re.search(message, error), error
    assert error.startswith("run.py: ") and "Traceback" not in output.err and output.out == ""
    assert not logs.exists() or not list(logs.iterdir()), "nothing may be written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused_and_auto_takes_the_cpu(tmp_path, small, capsys):
    assert run.main(["--device", "cuda", "--logs", str(tmp_path)]) == 2
    assert "finds no GPU" in capsys.readouterr().err
    folder = train(tmp_path, "--device", "auto")
    assert json.loads((folder / "config.json").read_text())["device"].startswith("cpu")


def test_logs_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run.main([*TINY, "--logs", str(tmp_path / "file" / "logs")]) == 2
    assert "--logs" in capsys.readouterr().err


def cifar_tree(root, content):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(content)


class Boom:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04truncated", pickle.dumps({"data": [1, 2]}), pickle.dumps("text"), pickle.dumps({b"data": Boom()})],
    ids=["empty", "truncated", "no CIFAR batch", "no mapping", "runs code"],
)
def test_a_cifar_batch_that_is_none(content, tmp_path, capsys):
    cifar_tree(tmp_path / "dataset", content)
    flags = ["--dataset", "cifar-10", "--root", str(tmp_path / "dataset"), "--weights", "none"]
    assert run.main([*flags, "--logs", str(tmp_path / "logs")]) == 2
    output = capsys.readouterr()
    assert "data_batch_1 is not the official file; delete the folder" in output.err.strip().splitlines()[-1]
    assert "never run" not in output.out + output.err


@pytest.mark.parametrize("main", [main_mmasia, main_tomm])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(main, tmp_path, small, monkeypatch, capsys):
    parts = main.cycle_loss_parts
    calls = []

    def break_down(*arguments, **options):
        calls.append(0)
        losses = parts(*arguments, **options)
        # Two iterations of one pass of 3 batches are fine; the third iteration breaks.
        return losses if len(calls) <= 6 else {name: value * float("nan") for name, value in losses.items()}

    monkeypatch.setattr(main, "cycle_loss_parts", break_down)
    flags = [
        "--method",
        main.__name__,
        "--max-iter",
        "4",
        "--batch-size",
        "24",
        "--save-iter",
        "1",
        "--logs",
        str(tmp_path),
        "--code-length",
        "8",
    ]
    assert run.main([*TINY, *flags]) == 2
    assert "is not a finite number at iteration 3" in capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in sorted(folder.glob("checkpoint*"))] == [
        "checkpoint-8bits-000001.pt",
        "checkpoint-8bits-000002.pt",
    ]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_finished_code_length_survives_the_failure_of_the_next(tmp_path, small, monkeypatch):
    monkeypatch.setattr(main_mmasia, "train", fail_at(12, main_mmasia.train))
    assert run.main([*TINY, "--logs", str(tmp_path), "--code-length", "8,12"]) == 2
    (folder,) = tmp_path.iterdir()
    assert [row["code_length"] for row in json.loads((folder / "results.json").read_text())] == [8]


def fail_at(code_length, train_function):
    def train_or_fail(folder, bits, split):
        if bits == code_length:
            raise run.UserError("no more")
        return train_function(folder, bits, split)

    return train_or_fail


def test_method_name_is_the_default_of_method(tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr(run, "method_name", "main_tomm")
    folder = train(tmp_path)
    assert folder.name.startswith("main_tomm-digits-")
    monkeypatch.setattr(run, "method_name", "main_typo")
    assert run.main(TINY) == 2
    assert "method_name in run.py is 'main_typo'" in capsys.readouterr().err


def test_help_is_grouped_with_defaults_one_line_each(capsys):
    with pytest.raises(SystemExit) as caught:
        run.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for group in ("What to run:", "Data:", "Network:", "Training:", "Evaluation:"):
        assert group in text
    for flag in ("--method", "--num-samples", "--max-iter", "--max-epoch", "--eval-iter", "--batch-size", "--lr",
                 "--alpha", "--beta", "--gamma", "--topk", "--num-query", "--num-workers", "--device"):  # fmt: skip
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{flag} ")]
        assert len(line) <= 120
    assert "[main_mmasia]" in text


@pytest.mark.parametrize(
    ("flags", "defaults"),
    [
        ([], {"--dataset": "digits", "--lr": "0.0001", "--max-iter": "9", "--image-size": "64", "--weights": "none"}),
        (["--dataset", "cifar-10"], {"--dataset": "cifar-10", "--lr": "4e-05", "--max-iter": "50", "--margin": "0.3"}),
        (["--dataset=nus-wide-tc21"], {"--num-samples": "10500", "--milestones": "131", "--topk": "5000"}),
        (["--dataset", "folder", "--preset", "cifar-10-cpu"], {"--backbone": "squeezenet1_0", "--num-samples": "5000"}),
    ],
)
def test_help_lists_the_datasets_and_shows_the_defaults_of_the_chosen_one(flags, defaults, capsys):
    with pytest.raises(SystemExit):
        run.main([*flags, "--help"])
    text = capsys.readouterr().out
    assert ", ".join(DATASETS) in " ".join(text.split())
    for flag, default in defaults.items():
        (described,) = re.findall(rf"\n  {flag} .*(?:\n {{9,}}.*)*", text)
        assert described.endswith(f"[{default}]"), described


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, policy, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert run.main(["--colour"]) == 2
    assert os.environ["OMP_WAIT_POLICY"] == policy


def test_help_imports_no_torch():
    """It takes a quarter of a second; torch and torchvision alone take two."""
    script = (
        "import sys, run; sys.argv[1:] = ['--help']\ntry: run.main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--num-samples" in done.stdout
    modules = set(done.stderr.split())
    assert "run" in modules and not modules & {"torch", "torchvision", "numpy", "scipy", "PIL", "sklearn", "matplotlib"}


def test_the_names_that_help_lists_are_those_that_exist():
    assert tuple(DATASETS) == command.DATASETS and tuple(AUGMENTATIONS) == command.AUGMENTATIONS


def test_presets_and_what_wins_over_them():
    parse = command_line.parse_command
    nus = parse(["--dataset", "nus-wide-tc21"], method_name="main_tomm").settings
    assert (nus.num_samples, nus.max_iter, nus.topk, nus.method) == (10500, 150, 5000, "main_tomm")
    command = parse(["--dataset", "cifar-10", "--max-iter", "7", "--topk", "100"], method_name="main_mmasia")
    cifar = command.settings
    assert (cifar.num_samples, cifar.max_iter, cifar.topk) == (5000, 7, 100)
    release = (cifar.batch_size, cifar.lr, cifar.alpha, cifar.beta, cifar.gamma, cifar.max_epoch, cifar.eval_iter)
    assert release == (64, 4e-5, 2, 0.1, 10, 3, 10) and cifar.seed == 999 and cifar.code_length == (12, 24, 32, 48)
    with pytest.raises(settings_module.UserError, match="did you mean 'max_iter'"):
        settings_module.Settings.for_dataset("digits", max_itr=3)


def test_figures_and_tensorboard_on_request(tmp_path, small):
    folder = train(tmp_path, "--figures", "--tensorboard", "--code-length", "8,12")
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {"gallery-8bits.png", "gallery-12bits.png", "training-8bits.png", "map-by-code-length.png"} <= pictures
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {"8bits", "12bits"}
    assert not (train(tmp_path / "plain") / "figures").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    script = """
import resource, sys, torch
from utils.devices import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# At first an aligned block rarely fits exactly where the last one was; after some rounds the heap has room enough.
print(sum([faults() for _ in range(60)][-20:]))
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", script, how], cwd=ROOT, capture_output=True, check=True).stdout)
        for how in ("keep", "default")
    )
    assert given_back >= 20 * 2**26 // 2**16 and kept < given_back / 4, (kept, given_back)  # pages of 4 to 64 KiB
