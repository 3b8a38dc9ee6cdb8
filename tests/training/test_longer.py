"""--resume RUN --max-iter N, and signals at every moment: the results are those of one run."""

import json
import os
import signal

import pytest
import torch

import main_mmasia
import main_tomm
import run
from baselines import symmetric
from tests.small_networks import shrink
from tests.training.test_checkpoint import assert_same, outcome
from training import loop, recorder

FLAGS = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--batch-size", "24", "--max-epoch", "1"]
FLAGS += ["--eval-iter", "3", "--save-iter", "2", "--augment", "crop", "--code-length", "8"]
MAINS = {"main_mmasia": main_mmasia, "main_tomm": main_tomm, "orthohash": symmetric}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for main in MAINS.values():
        shrink(monkeypatch, main, dropout=0.5)


def train(logs, *flags):
    assert run.main([*FLAGS, "--logs", str(logs), *flags]) == 0
    (folder,) = logs.iterdir()
    return folder


@pytest.mark.parametrize(
    ("method", "flags"),
    [("main_mmasia", ["--validate", "100"]), ("main_tomm", ["--milestones", "3,5"]), ("orthohash", [])],
)
def test_a_finished_run_trains_longer(method, flags, tmp_path):
    flags = ["--method", method, *flags]
    reference = train(tmp_path / "long", *flags, "--max-iter", "7")
    folder = train(tmp_path / "short", *flags, "--max-iter", "4")  # the end is no iteration to evaluate
    assert run.main(["--resume", str(folder), "--max-iter", "7"]) == 0
    assert_same(outcome(reference), outcome(folder), files=5)
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"] == json.loads((reference / "config.json").read_text())["settings"] | {
        "logs": str(tmp_path / "short")
    }
    before = (folder / "results.json").read_bytes()
    assert run.main(["--resume", str(folder)]) == 0 and (folder / "results.json").read_bytes() == before


def test_what_cannot_be_continued_is_refused(tmp_path, capsys):
    folder = train(tmp_path, "--method", "hashnet", "--max-iter", "2")
    assert run.main(["--resume", str(folder), "--max-iter", "3"]) == 2
    assert (
        f"--resume {folder} --max-iter 3: the loss of hashnet follows a schedule over all 2 iterations, so that a "
        "longer run differs from the first one on; start a new run." in capsys.readouterr().err
    )
    assert run.main(["--resume", str(folder), "--max-iter", "1"]) == 2
    assert "--max-iter 1 (the run has 2)" in capsys.readouterr().err


def test_without_a_checkpoint_it_starts_from_the_first_iteration(tmp_path, capfd):
    reference = train(tmp_path / "long", "--max-iter", "3")
    folder = train(tmp_path / "short", "--max-iter", "2", "--save-iter", "0")
    assert run.main(["--resume", str(folder), "--max-iter", "3"]) == 0
    assert (
        "8 bits: no checkpoint is left, so that training starts again from the first iteration"
        in capfd.readouterr().err
    )
    assert_same(outcome(reference), outcome(folder), files=5)


def test_a_log_that_is_cut_in_its_last_line_is_continued(tmp_path):
    reference = train(tmp_path / "whole", "--max-iter", "4")
    folder = train(tmp_path / "cut", "--max-iter", "3")
    log = folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    (folder / "checkpoint-8bits-000003.pt").unlink()
    assert run.main(["--resume", str(folder), "--max-iter", "4"]) == 0
    assert_same(outcome(reference), outcome(folder), files=5)


# ---- A signal during an evaluation ----


def stop_at(monkeypatch, call):
    """SIGTERM reaches the process in call number `call` of `encode`."""
    real, calls = recorder.encode, []

    def encode(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was not obeyed")
        return real(*arguments, **options)

    monkeypatch.setattr(recorder, "encode", encode)


@pytest.mark.parametrize(
    ("method", "stops"),  # (which call of `encode`, iterations that are done then)
    [("main_mmasia", [(1, 3), (2, 3), (3, 5)]), ("orthohash", [(2, 3)])],
)
def test_an_evaluation_is_left_at_once_and_made_up_for(method, stops, tmp_path, capsys):
    flags = ["--method", method, "--max-iter", "5", "--validate", "100", "--save-iter", "100"]
    reference = train(tmp_path / "unbroken", *flags)
    for call, done in stops:
        logs = tmp_path / f"stopped-{call}"
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, call)
            assert run.main([*FLAGS, *flags, "--logs", str(logs)]) == 143
        (folder,) = logs.iterdir()
        assert f"stopped by SIGTERM; resume with: python run.py --resume {folder}." in capsys.readouterr().err
        (saved,) = folder.glob("checkpoint-*.pt")
        assert torch.load(saved, weights_only=True)["iteration"] == done
        assert run.main(["--resume", str(folder)]) == 0
        assert_same(outcome(reference), outcome(folder), files=5)


def test_the_last_evaluation_is_left_at_once(tmp_path):
    reference = train(tmp_path / "unbroken", "--max-iter", "3", "--code-length", "8,12")
    logs = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 3)  # the queries at iteration 3, the queries and the database at the end
        assert run.main([*FLAGS, "--max-iter", "3", "--code-length", "8,12", "--logs", str(logs)]) == 143
    (folder,) = logs.iterdir()
    assert not (folder / "results.json").exists() and len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert run.main(["--resume", str(folder)]) == 0
    assert_same(outcome(reference), outcome(folder))


# ---- A signal between two iterations ----


@pytest.mark.parametrize(("save_iter", "done"), [("2", 2), ("100", 3)])
def test_between_iterations_it_stops_at_once_if_all_is_saved(save_iter, done, tmp_path):
    """Otherwise the next iteration is finished and saved, so that none is lost."""
    flags = ["--max-iter", "4", "--save-iter", save_iter]
    reference = train(tmp_path / "unbroken", *flags)
    real, logs = loop.draw_sample, tmp_path / "stopped"

    def draw_sample(*arguments):
        if arguments[-1] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_sample", draw_sample)
        assert run.main([*FLAGS, *flags, "--logs", str(logs)]) == 143
    (folder,) = logs.iterdir()
    (saved,) = folder.glob("checkpoint-*.pt")
    assert torch.load(saved, weights_only=True)["iteration"] == done
    assert run.main(["--resume", str(folder)]) == 0
    assert_same(outcome(reference), outcome(folder), files=5)
