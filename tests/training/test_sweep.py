"""Sweeps: the cells' figures are a plain run's, a cell that fails ends no other, and the same command goes on."""

import json
import os
import re
import signal
import threading
import time

import pytest
import torch

import main_mmasia
import main_tomm
import run
from tests import train_small
from tests.small_networks import SmallImageNet, shrink
from training import sweep
from training.command_line import parse_command
from training.settings import Settings
from utils.files import locked

TINY = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--batch-size", "24", "--max-epoch", "1"]
TINY += ["--max-iter", "6", "--eval-iter", "3", "--save-iter", "1", "--augment", "crop"]


class Forked:
    """A cell with small networks, forked from tests.train_small's server: the real child would import torch anew."""

    def __init__(self, process):
        self.process = process

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)


class Cells:
    """Stands in for `start_process`; `treat` says by seed what else becomes of a cell."""

    def __init__(self, output):
        self.output = output
        self.started = []
        self.treat = {}

    def __call__(self, cell, threads=None):
        self.started.append(cell.folder.name)
        treatment = self.treat.get(cell.settings.seed)
        flags = [*cell.settings.as_flags(), "--cell", cell.folder]
        if treatment is None:
            return Forked(train_small.start(flags, self.output))
        return treatment(cell, flags, self.output)


@pytest.fixture
def cells(tmp_path, monkeypatch):
    cells = Cells(tmp_path / "output")
    monkeypatch.setattr(sweep, "start_process", cells)
    monkeypatch.setattr("training.preflight.image_network", SmallImageNet)
    return cells


def raises(cell, flags, output):
    process = train_small.CONTEXT.Process(target=_train_or_raise, args=([str(flag) for flag in flags], str(output)))
    process.start()
    return Forked(process)


def _train_or_raise(flags, output):
    def broken(folder, code_length, split):
        raise RuntimeError("a tensor too\n  many")

    main_mmasia.train = broken
    train_small._train(flags, output, 0.0)


def killed(cell, flags, output):
    process = train_small.start(flags, output, slow=0.05)
    wait_for_lines(cell.folder, 2)
    process.kill()
    return Forked(process)


def wait_for_lines(folder, number):
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < number:
        assert time.monotonic() < deadline, f"{path} has no {number} lines"
        time.sleep(0.005)


def outcome(folder):
    """All that a cell leaves and that must not depend on how it was run: rows by code length, lines, codes."""
    rows = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows + lines:
        del row["seconds"]
    paths = [*folder.glob("*.t"), *folder.glob("model_image*")]
    return rows, lines, {path.name: torch.load(path, weights_only=True) for path in paths}


def assert_same(value, other):
    assert type(value) is type(other)
    if isinstance(value, torch.Tensor):
        assert torch.equal(value, other)
    elif isinstance(value, dict):
        assert value.keys() == other.keys()
        for key in value:
            assert_same(value[key], other[key])
    else:
        assert value == other


def plain(logs, monkeypatch, *flags):
    with monkeypatch.context() as patch:
        for main in (main_mmasia, main_tomm):
            shrink(patch, main, dropout=0.5)
        assert run.main([*TINY, "--logs", str(logs), *flags]) == 0
    (folder,) = logs.iterdir()
    return folder


def test_cells_are_plain_runs_and_finished_ones_are_skipped(tmp_path, cells, monkeypatch, capsys):
    short = ["--max-iter", "3", "--code-length", "8,12"]
    command = [*TINY, *short, "--logs", str(tmp_path / "logs"), "--seeds", "0,3", "--method", "both"]
    assert run.main([*command, "--sweep", "first"]) == 0
    names = [f"{m}-digits-{k}bits-seed{s}" for s in (0, 3) for m in ("main_mmasia", "main_tomm") for k in (8, 12)]
    assert cells.started == names
    folder = tmp_path / "logs" / "first"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(names)
    printed = capsys.readouterr().out
    for method, seed in (("main_mmasia", 0), ("main_tomm", 3)):
        own = plain(tmp_path / f"{method}-{seed}", monkeypatch, *short, "--method", method,
                    "--seed", str(seed))  # fmt: skip
        rows, lines, tensors = outcome(own)
        for bits in (8, 12):
            cell_rows, cell_lines, cell_tensors = outcome(folder / f"{method}-digits-{bits}bits-seed{seed}")
            assert cell_rows == [row for row in rows if row["code_length"] == bits] and len(cell_rows) == 1
            assert cell_lines == [line for line in lines if line["code_length"] == bits] and len(cell_lines) == 3
            assert_same(cell_tensors, {name: value for name, value in tensors.items() if f"{bits}bits" in name})
            assert len(cell_tensors) == 5
            learned = cell_rows[0]["map"]["learned"]["expected"]
            assert re.search(rf"^{method} +{seed} +{bits} +{learned:.4f} ", printed, re.M)

    cells.started.clear()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    assert run.main([*command, "--sweep", "first"]) == 0 and cells.started == []
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    assert run.main([*command, "--sweep", "first", "--code-length", "8,16", "--dry-run"]) == 0
    listing = capsys.readouterr().out
    assert "8 cells, 4 finished" in listing
    assert re.search(r"main_tomm-digits-8bits-seed3 +finished$", listing, re.M)
    assert re.search(r"main_tomm-digits-16bits-seed3 +to do$", listing, re.M)


def test_a_cell_that_fails_is_marked_and_the_rest_goes_on(tmp_path, cells, monkeypatch, capsys):
    command = [*TINY, "--logs", str(tmp_path / "logs"), "--code-length", "8", "--seeds", "0,1,2"]
    cells.treat = {0: raises, 1: killed}
    assert run.main(command) == 1
    (folder,) = (tmp_path / "logs").iterdir()
    broken, dead, whole = (folder / f"main_mmasia-digits-8bits-seed{seed}" for seed in (0, 1, 2))
    note = json.loads((broken / "failed.json").read_text())
    assert note["message"] == "RuntimeError: a tensor too many" and note["time"][:2] == "20"
    assert note["traceback"].startswith("Traceback") and "in broken" in note["traceback"]
    note = json.loads((dead / "failed.json").read_text())
    assert "killed by SIGKILL" in note["message"] and note["traceback"] == ""
    assert not (whole / "failed.json").exists() and (whole / "results.json").exists()
    output = capsys.readouterr()
    assert re.search(r"^main_mmasia +0 +8 +failed: RuntimeError: a tensor too many$", output.out, re.M)
    assert re.search(r"^main_mmasia +1 +8 +failed: .*SIGKILL", output.out, re.M)
    assert re.search(r"^main_mmasia +2 +8 +0\.\d{4} ", output.out, re.M) and "1 of 3 cells are finished" in output.out
    assert "Traceback" not in output.err + cells.output.read_text()

    assert run.main([*command, "--dry-run"]) == 0
    listing = capsys.readouterr().out
    assert re.search(r"seed0 +failed before: RuntimeError: a tensor too many$", listing, re.M)
    assert re.search(r"seed1 +failed before: .*SIGKILL", listing, re.M) and re.search(
        r"seed2 +finished$", listing, re.M
    )

    cells.treat, cells.started = {}, []
    assert run.main(command) == 0
    assert cells.started == [broken.name, dead.name] and not list(folder.rglob("failed.json"))
    assert len(json.loads((dead / "config.json").read_text())["resumed"]) == 1, (
        "from its checkpoint, not from the start"
    )
    for seed, cell in enumerate((broken, dead)):
        own = plain(tmp_path / f"plain-{seed}", monkeypatch, "--code-length", "8", "--seed", str(seed))
        for value, other in zip(outcome(cell), outcome(own), strict=True):
            assert_same(value, other)


def test_a_child_that_says_nothing_is_marked_all_the_same(tmp_path, cells, capsys):
    class Silent:
        def wait(self):
            return 7

        def send_signal(self, number): ...

    cells.treat = {0: lambda *_: Silent()}
    command = [*TINY, "--logs", str(tmp_path), "--code-length", "8", "--seeds", "0", "--sweep", "silent"]
    assert run.main(command) == 1
    note = json.loads((tmp_path / "silent" / "main_mmasia-digits-8bits-seed0" / "failed.json").read_text())
    assert "ended with status 7 and left no result" in note["message"]
    cells.treat = {}
    assert run.main(command) == 0, "a folder that holds nothing but the mark starts anew"


def hit(number, early):
    """Send a signal: as soon as the cell has begun, before the sweep waits for it, or while it waits.

    Ctrl-C in a terminal signals the whole process group, sweep and cell; SIGTERM is sent to the sweep alone.
    """

    def start(cell, flags, output):
        process = train_small.start(flags, output, slow=0.05)

        def signal_sweep():
            wait_for_lines(cell.folder, 1 if early else 2)
            os.kill(os.getpid(), number)
            if number == signal.SIGINT:
                os.kill(process.pid, number)

        if early:
            signal_sweep()
        else:
            threading.Thread(target=signal_sweep).start()
        return Forked(process)

    return start


@pytest.mark.parametrize(
    ("number", "status", "early"),
    [
        (signal.SIGINT, 130, False),
        (signal.SIGTERM, 143, False),
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, True),
    ],
)
def test_a_signal_lets_the_cell_save_and_the_same_command_goes_on(number, status, early, tmp_path, cells, capsys):
    handler = signal.getsignal(number)
    command = [*TINY, "--save-iter", "100", "--logs", str(tmp_path / "logs"), "--code-length", "8", "--seeds", "0,1,2"]
    cells.treat = {1: hit(number, early)}
    assert run.main(command) == status and signal.getsignal(number) is handler
    assert [name[-5:] for name in cells.started] == ["seed0", "seed1"]
    error = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name}; 1 of 3 cells are finished" in error
    assert "resume with the same command: python " in error and "--resume" not in error + cells.output.read_text()
    (folder,) = (tmp_path / "logs").iterdir()
    stopped = folder / "main_mmasia-digits-8bits-seed1"
    (checkpoint,) = stopped.glob("checkpoint-*.pt")
    assert not (stopped / "failed.json").exists(), "stopped, not failed"
    assert run.main([*command, "--dry-run"]) == 0
    assert f"seed1  to resume from iteration {int(checkpoint.stem[-6:])}\n" in capsys.readouterr().out
    cells.treat = {}
    assert run.main(command) == 0
    assert len(json.loads((stopped / "config.json").read_text())["resumed"]) == 1


def test_several_cells_at_once_share_the_threads_and_give_the_same(tmp_path, cells, monkeypatch):
    at_once, threads, most = 0, set(), []
    start = cells.__call__

    def counting(cell, share=None):
        nonlocal at_once
        at_once += 1
        most.append(at_once)
        threads.add(share)
        process = start(cell)

        class Counted(Forked):
            def wait(self):
                nonlocal at_once
                status = super().wait()
                at_once -= 1
                return status

        return Counted(process.process)

    monkeypatch.setattr(sweep, "start_process", counting)
    monkeypatch.setattr(sweep.torch, "get_num_threads", lambda: 5)
    command = [*TINY, "--logs", str(tmp_path), "--code-length", "8", "--seeds", "0,1,2", "--sweep", "jobs"]
    assert run.main([*command, "--jobs", "2"]) == 0
    assert max(most) == 2 and threads == {2}
    for seed in range(3):
        own = plain(tmp_path / f"plain-{seed}", monkeypatch, "--code-length", "8", "--seed", str(seed))
        cell = tmp_path / "jobs" / f"main_mmasia-digits-8bits-seed{seed}"
        for value, other in zip(outcome(cell), outcome(own), strict=True):
            assert_same(value, other)


def test_a_dry_run_makes_nothing(tmp_path, cells, capsys):
    logs = tmp_path / "logs"
    assert run.main([*TINY, "--logs", str(logs), "--seeds", "5", "--method", "both", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("to do") == 8 and "8 cells, 0 finished" in printed
    assert not logs.exists() and cells.started == []


REFUSALS = [
    (["--seeds", "0,0"], r"--seeds: '0,0' names a number twice"),
    (["--seeds", "0,-1"], r"--seeds"),
    (["--seeds", ""], r"--seeds"),
    (["--seeds", "0,1", "--seed", "2"], r"--seed and --seeds: give one of the two"),
    (["--sweep", "a/b"], r"--sweep: 'a/b' is not the plain name of a folder"),
    (["--sweep", ".."], r"--sweep"),
    (["--method", "csq,csq"], r"--method: 'csq,csq' names a method twice"),
    (["--jobs", "2"], r"--jobs 2 runs the cells of a sweep at once; add --seeds"),
    (["--seeds", "0", "--jobs", "0"], r"--jobs: '0' must be a whole number, 1 or more"),
    (["--dry-run"], r"--dry-run lists the cells of a sweep; add --seeds"),
    (["--method", "bot", "--seeds", "1"], r"none of main_mmasia, main_tomm, .*both; did you mean both"),
    (["--resume", "somewhere", "--seeds", "1"], r"--resume somewhere: this is one run"),
    (["--resume", "somewhere", "--method", "both"], r"--resume somewhere: this is one run"),
    (["--resume", "somewhere", "--sweep", "a"], r"--resume somewhere: this is one run"),
    (["--resume", "somewhere", "--dry-run"], r"--resume somewhere: this is one run"),
    (["--resume", "somewhere", "--cell", "elsewhere"], r"this is one run"),
    (["--cell", "somewhere", "--seeds", "1"], r"--cell somewhere: this is one run"),
    (["--seeds", "0,1", "--num-samples", "1498"], r"--num-samples 1498.*only 1497"),
    (["--seeds", "0,1", "--weights", "/nowhere.pt"], r"--weights /nowhere\.pt: there is no such file"),
    (["--seeds", "0,1", "--device", "tpu"], r"--device tpu: not a device"),
    (["--method", "both", "--no-discriminator"], r"--no-discriminator: main_mmasia"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSALS, ids=[" ".join(flags) for flags, _ in REFUSALS])
def test_bad_flags_are_refused_before_any_cell_starts(flags, message, tmp_path, cells, capsys):
    logs = tmp_path / "logs"
    given = flags if "--resume" in flags else ["--dataset", "digits", "--logs", str(logs), *flags]
    assert run.main(given) == 2
    output = capsys.readouterr()
    assert re.search(message, output.err.strip().splitlines()[-1]) and output.out == "" and cells.started == []
    assert not logs.exists() or not list(logs.iterdir())


def test_a_cell_of_other_settings_is_refused_with_the_difference(tmp_path, cells, capsys):
    command = [*TINY, "--logs", str(tmp_path), "--code-length", "8", "--seeds", "0", "--sweep", "named"]
    assert run.main(command) == 0
    for flags in (["--lr", "0.5"], ["--lr", "0.5", "--dry-run"]):
        assert run.main([*command, "--seeds", "4,0", *flags]) == 2
        error = capsys.readouterr().err
        assert "main_mmasia-digits-8bits-seed0: holds a run with other settings" in error
        assert "--lr 0.5 (the run has 0.0001)" in error and "--sweep" in error
    assert len(cells.started) == 1
    assert run.main([*command, "--num-workers", "1", "--figures"]) == 0, "these change no figure"
    assert run.main([*command, "--sweep", "main_mmasia-digits-8bits-seed0", "--logs", str(tmp_path / "named")]) == 2
    assert "is the folder of a run" in capsys.readouterr().err


def name_of(*flags):
    command = parse_command(["--seeds", "1", *flags], method_name="main_mmasia")
    return sweep.sweep_folder(command.settings, command.grid).name


def test_the_name_of_a_sweep_says_its_settings():
    plain_name = name_of()
    assert re.fullmatch("sweep-digits-[0-9a-f]{8}", plain_name)
    same = [["--seeds", "2,3"], ["--method", "both"], ["--code-length", "8"], ["--device", "cpu"], ["--save-iter", "1"]]
    assert {name_of(*flags) for flags in same} == {plain_name}
    other = [["--lr", "0.5"], ["--max-iter", "7"], ["--dataset", "cifar-10"], ["--latent", "tanh"]]
    other += [["--preset", "cifar-10-cpu"], ["--preset", "cifar-10-cpu", "--lr", "0.5"]]
    other += [["--dataset", "folder", "--root", "a"], ["--dataset", "folder", "--root", "b"]]
    assert len({plain_name, *(name_of(*flags) for flags in other)}) == 1 + len(other)
    assert name_of("--lr", "1e-4") == plain_name, "the preset's own value is no difference"
    assert name_of("--sweep", "mine", "--lr", "0.5") == "mine"


@pytest.mark.parametrize(
    "settings",
    [
        Settings.for_dataset("digits"),
        Settings.for_dataset("folder", root="-a b", method="main_tomm", query_share=0.1 + 0.2, check=True),
        Settings.for_dataset("nus-wide-tc21", topk=-1, lr=1e-5, weight_decay=0.0, code_length=(64, 8), seed=2**63 - 1),
        Settings.for_dataset("folder", preset="cifar-10-cpu", root="c", lr=1e-4),
        Settings.for_dataset("digits", method="main_tomm", no_discriminator=True, latent="tanh", precision="bfloat16"),
    ],
)
def test_flags_say_all_of_the_settings(settings):
    assert parse_command(settings.as_flags(), method_name="main_mmasia").settings == settings


def test_a_second_process_is_refused(tmp_path, cells, capsys):
    command = [*TINY, "--logs", str(tmp_path), "--code-length", "8", "--seeds", "0", "--sweep", "busy"]
    (tmp_path / "busy").mkdir()
    with locked(tmp_path / "busy" / ".lock"):
        assert run.main(command) == 2 and cells.started == []
    assert "another process runs this sweep" in capsys.readouterr().err


def test_a_cell_that_outlives_its_sweep_is_not_disturbed(tmp_path, cells):
    """A sweep killed by SIGKILL leaves its cell running, and the cell holds the lock of its folder."""
    command = [*TINY, "--logs", str(tmp_path), "--code-length", "8", "--seeds", "0", "--sweep", "killed"]
    cell = tmp_path / "killed" / "main_mmasia-digits-8bits-seed0"
    cell.mkdir(parents=True)
    with locked(cell / ".lock"):
        assert run.main(command) == 1
    assert "another process trains in this folder" in json.loads((cell / "failed.json").read_text())["message"]
    assert not (cell / "metrics.jsonl").exists()
    assert run.main(command) == 0 and not (cell / "failed.json").exists()


def test_a_real_child_trains(tmp_path, capfd):
    tiny = ["--num-samples", "2", "--max-iter", "1", "--num-query", "20", "--save-iter", "0", "--code-length", "12"]
    tiny += ["--backbone", "squeezenet1_0", "--image-size", "32"]
    assert run.main([*tiny, "--logs", str(tmp_path), "--seeds", "4", "--sweep", "real"]) == 0, capfd.readouterr().err
    folder = tmp_path / "real" / "main_mmasia-digits-12bits-seed4"
    config = json.loads((folder / "config.json").read_text())
    assert f"--cell {folder}" in config["command"] and config["settings"]["seed"] == 4
    printed = capfd.readouterr()
    assert "iteration 1: mAP of the learned codes" in printed.err and f"Written to {folder}/" in printed.out
