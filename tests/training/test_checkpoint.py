"""Runs that are killed, stopped or out of disk: what was saved stands, and going on ends as if nothing had happened."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch

import main_mmasia
import run
from tests.small_networks import shrink
from tests.train_small import start
from training import run_folder
from training.loop import Loop

FLAGS = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--batch-size", "24", "--max-epoch", "2"]
FLAGS += ["--max-iter", "8", "--eval-iter", "3", "--save-iter", "1", "--augment", "crop", "--code-length", "8,12"]
KILLS = 10


def outcome(folder):
    """All that must not depend on interruptions."""
    rows = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows + lines:
        del row["seconds"]
    tensors = {
        path.name: torch.load(path, weights_only=True) for path in [*folder.glob("*.t"), *folder.glob("model_image*")]
    }
    return rows, lines, tensors


def assert_same(one, other, files=10):
    assert one[:2] == other[:2]
    assert one[2].keys() == other[2].keys() and len(one[2]) == files
    for name, value in one[2].items():
        pairs = (
            zip(value.values(), other[2][name].values(), strict=True)
            if isinstance(value, dict)
            else [(value, other[2][name])]
        )
        assert all(torch.equal(a, b) for a, b in pairs), name


def wait_until(condition, process, output):
    while not condition():
        assert process.is_alive(), output.read_text()
        time.sleep(0.005)


def ended(process, output, status=0):
    process.join(timeout=120)
    assert process.exitcode == status, output.read_text()


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_killed_at_random_and_resumed_equals_unbroken(method, tmp_path):
    output = tmp_path / "output"
    flags = [*FLAGS, "--method", method, "--max-iter", 12]
    ended(start([*flags, "--logs", tmp_path / "unbroken"], output), output)
    (reference,) = (tmp_path / "unbroken").iterdir()

    logs, moments, places = tmp_path / "killed", random.Random(0), []
    process = start([*flags, "--logs", logs], output, slow=0.02)
    for kill in range(KILLS):
        # Before the folder stands there is nothing to resume; a resumed run notes in config.json that it goes on.
        wait_until(lambda kill=kill: times_opened(logs) == kill + 1, process, output)
        # At a random moment within the next few iterations, however fast the machine is just now.
        goal = lines(logs) + moments.choice([0, 0, 1, 2, 3])
        wait_until(lambda goal=goal: lines(logs) >= goal, process, output)
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run must still be at work when it is killed"
        (folder,) = logs.iterdir()
        places.append(lines(logs))
        process = start(["--resume", folder], output, slow=0.02 if kill + 1 < KILLS else 0)
    ended(process, output)
    assert len(set(places)) > 3, "the kills must meet the run at different iterations"
    assert_same(outcome(reference), outcome(folder))


def lines(logs):
    return sum(len(path.read_text().splitlines()) for path in logs.glob("*/metrics.jsonl"))


def times_opened(logs):
    for config in logs.glob("*/config.json"):
        return 1 + len(json.loads(config.read_text()).get("resumed", []))
    return 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number, status, tmp_path):
    output, logs = tmp_path / "output", tmp_path / "logs"
    process = start([*FLAGS, "--save-iter", 100, "--logs", logs], output, slow=0.05)
    wait_until(lambda: list(logs.glob("*/metrics.jsonl")), process, output)
    os.kill(process.pid, number)
    ended(process, output, status)
    (folder,) = logs.iterdir()
    assert f"python run.py --resume {folder}" in output.read_text() and "Traceback" not in output.read_text()
    assert len(list(folder.glob("checkpoint*"))) == 1
    ended(start(["--resume", folder], output), output)
    assert [row["code_length"] for row in json.loads((folder / "results.json").read_text())] == [8, 12]


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch, main_mmasia, dropout=0.5)


def test_a_second_signal_stops_at_once(tmp_path, small, capsys, monkeypatch):
    def step(self, losses):
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM: finishing this iteration, then saving; send the signal again" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the second signal was not obeyed")

    monkeypatch.setattr(Loop, "step", step)
    assert run.main([*FLAGS, "--logs", str(tmp_path)]) == 143
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("checkpoint*")) and f"--resume {folder}" in capsys.readouterr().err


def one_run(tmp_path, *flags):
    assert run.main([*FLAGS, "--logs", str(tmp_path), "--max-iter", "2", "--code-length", "8", *flags]) == 0
    (folder,) = tmp_path.iterdir()
    return folder


def test_only_the_last_two_checkpoints_are_kept(tmp_path, small):
    folder = one_run(tmp_path, "--max-iter", "4")
    assert sorted(path.name for path in folder.glob("checkpoint*")) == [
        "checkpoint-8bits-000003.pt",
        "checkpoint-8bits-000004.pt",
    ]


def test_a_finished_run_resumes_to_nothing(tmp_path, small, capsys):
    folder = one_run(tmp_path)
    before = outcome_bytes(folder)
    assert run.main(["--resume", str(folder)]) == 0
    assert outcome_bytes(folder) == before
    assert "learned" in capsys.readouterr().out


def outcome_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "config.json"}


def test_changed_settings_are_refused_with_the_difference(tmp_path, small, capsys):
    folder = one_run(tmp_path)
    assert run.main(["--resume", str(folder), "--lr", "0.5", "--code-length", "8,16"]) == 2
    error = capsys.readouterr().err
    assert "--lr 0.5 (the run has 0.0001)" in error and "--code-length 8,16 (the run has 8)" in error
    assert run.main(["--resume", str(folder), "--lr", "1e-4", "--num-workers", "1"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "cannot be read as JSON"), ("[]", "not the file of a run"), ("{}", "no settings")],
)
def test_a_folder_that_is_no_run(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert run.main(["--resume", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 999])
def test_a_damaged_checkpoint_is_named(damage, tmp_path, small, capsys):
    folder = one_run(tmp_path)
    (folder / "results.json").unlink()
    newest = folder / "checkpoint-8bits-000002.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    assert run.main(["--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert str(newest) in error and "damaged, or not a checkpoint" in error
    newest.unlink()
    assert run.main(["--resume", str(folder)]) == 0


def test_a_checkpoint_of_other_networks_is_refused(tmp_path, small, capsys):
    folder = one_run(tmp_path)
    (folder / "results.json").unlink()
    path = folder / "checkpoint-8bits-000002.pt"
    state = torch.load(path, weights_only=True)
    state["codes"] = state["codes"][:5]
    torch.save(state, path)
    assert run.main(["--resume", str(folder)]) == 2
    assert "does not fit this run" in capsys.readouterr().err
    torch.save({"iteration": 2}, path)
    assert run.main(["--resume", str(folder)]) == 2
    assert "not a checkpoint" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_is_one_sentence_and_the_previous_checkpoint_is_intact(small_disk, small, capsys):
    flags = ["--code-length", "8", "--save-iter", "1", "--max-iter", "3"]
    filler = small_disk / "filler"
    save = run_folder.RunFolder._save

    def fill_before_the_second(self, path, content):
        if path.name.endswith("000002.pt"):
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"\0" * 4096)
                except OSError:
                    pass
        save(self, path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "_save", fill_before_the_second)
        assert run.main([*FLAGS, "--logs", str(small_disk), *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint-8bits-000002.pt: could not be written" in error and "free some space" in error
    filler.unlink()
    (folder,) = small_disk.iterdir()
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-8bits-000001.pt"]
    state = torch.load(folder / "checkpoint-8bits-000001.pt", weights_only=True)
    assert state["iteration"] == 1


@pytest.mark.parametrize("write", ["log", "_save"])
def test_a_disk_that_turns_read_only_is_one_sentence(write, small_disk, small, capsys, monkeypatch):
    """As a system does with a disk that fails; the second iteration's line, or its checkpoint, can't be written."""
    real, calls = getattr(run_folder.RunFolder, write), []

    def remount(mode):
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    def turn(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            remount("ro")
        real(self, *arguments)

    monkeypatch.setattr(run_folder.RunFolder, write, turn)
    # The system refuses the remount while a file is open for writing, as the lock of the run is.
    monkeypatch.setattr(run_folder, "locked", lambda path: contextlib.nullcontext())
    flags = ["--code-length", "8", "--save-iter", "1", "--max-iter", "3"]
    assert run.main([*FLAGS, "--logs", str(small_disk), *flags]) == 2
    remount("rw")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    name = "metrics.jsonl" if write == "log" else "checkpoint-8bits-000002.pt"
    assert f"{name}: could not be written (Read-only file system)" in error
    (folder,) = small_disk.iterdir()
    assert torch.load(folder / "checkpoint-8bits-000001.pt", weights_only=True)["iteration"] == 1
