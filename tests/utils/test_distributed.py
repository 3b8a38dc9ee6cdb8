"""Two processes, one run: gloo on the CPU."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import run
from data import Options, load_data
from data.data_loader import smallest_batch, train_batches
from modules import image_network
from modules.discrete import draw_sample, label_similarity
from tests.image_trees import folder_tree
from tests.plain_step import Networks, plain_discrete_step, plain_loss
from tests.small_networks import constructors
from tests.train_small import start
from tests.training.test_checkpoint import assert_same, ended, lines, outcome, wait_until
from training.checkpoint import Checkpoint
from training.run_folder import RunFolder
from training.settings import Settings
from utils.distributed import own_device
from utils.errors import UserError
from utils.runs import read_results
from utils.seeding import seed_everything

ROOT = Path(__file__).parents[2]
SAMPLES, BATCH, BITS, SEED = 61, 16, 8, 7
FLAGS = ["--dataset", "digits", "--image-size", "16", "--num-samples", SAMPLES, "--batch-size", BATCH, "--lr", "1e-3"]
FLAGS += ["--code-length", BITS, "--seed", SEED, "--augment", "crop", "--eval-iter", "2"]


def start_job(flags, folder, size=2, **options):
    """`size` processes as torchrun would start them, and the file each prints to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        environment = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in environment.items()}
        output = folder / f"output-{rank}"
        processes.append((start(flags, output, environment=environment, **options), output))
    return processes


def simulated_step(networks, batches, codes, gamma):
    """The step of a job, one batch after the other: gradients of all batches add up, each divided by their number."""
    share = 1 / len(batches)
    inputs = [(images.double(), targets.double(), label_similarity(targets.double())) for images, targets, _ in batches]
    networks.optimizers["all"].zero_grad()
    kept = []
    for (images, targets, similarity), (_, _, rows) in zip(inputs, batches, strict=True):
        outputs = networks.forward(images, targets, similarity)
        (share * plain_loss(outputs, codes[rows], similarity, gamma)).backward()
        kept.append(outputs)
    networks.optimizers["all"].step()
    if networks.discriminator is not None:
        kept = [networks.forward(*each) for each in inputs]
        networks.optimizers["d"].zero_grad()
        for u_image, u_label, _, u_image_rec, u_label_rec in kept:
            real = networks.discriminator(u_image.detach(), u_label.detach())
            fake = networks.discriminator(u_image_rec.detach(), u_label_rec.detach())
            (share * (-real.log().mean() - (1 - fake).log().mean())).backward()
        networks.optimizers["d"].step()
        networks.optimizers["g"].zero_grad()
        for _, _, _, u_image_rec, u_label_rec in kept:
            (share * -networks.discriminator(u_image_rec, u_label_rec).log().mean()).backward()
        networks.optimizers["g"].step()
    return [outputs[:3] for outputs in kept]


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_two_processes_equal_their_batches_one_after_the_other(method, tmp_path):
    logs = tmp_path / "logs"
    flags = [*FLAGS, "--method", method, "--max-iter", 2, "--max-epoch", 2, "--logs", logs]
    for process, output in start_job(flags, tmp_path, double=True):
        ended(process, output)
    (folder,) = logs.iterdir()
    first, second = ((tmp_path / f"output-{rank}").read_text().splitlines() for rank in range(2))
    assert any("learned" in line for line in first)
    assert [line for line in second if not line.startswith("[Gloo]")] == []  # which torch 2.9 prints

    torch.set_default_dtype(torch.float64)
    try:
        split = load_data("digits", "unused", Options(seed=SEED, image_size=16))
        small = constructors()
        seed_everything(SEED)
        built = [small["image_network"]("alexnet", BITS), small["MLP"](split.num_classes, BITS)]
        built.append(small["CycleNet"](BITS, variant=method.removeprefix("main_"), image_dim=24))
        if method == "main_tomm":
            built.append(small["ReconstructionDiscriminator"](BITS))
        networks = Networks(*built, lr=1e-3)
        labels = split.database.labels.double()
        codes = torch.zeros(len(split.database), BITS)
        for iteration in range(2):
            sample = draw_sample(len(split.database), SAMPLES, SEED, iteration)
            last = torch.zeros(3, len(split.database), BITS)
            for epoch in range(2):
                key = (SEED, "batches", iteration) + (() if method == "main_tomm" else (epoch,))
                shares = [
                    list(train_batches(split.database, sample, batch_size=BATCH, key=key, augment="crop", share=(i, 2)))
                    for i in range(2)
                ]
                for batches in zip(*shares, strict=True):
                    for outputs, (_, _, rows) in zip(
                        simulated_step(networks, batches, codes, 10.0), batches, strict=True
                    ):
                        last[:, rows] = torch.stack(outputs).detach()
            codes[sample] = plain_discrete_step(
                codes[sample], last[:, sample], labels[sample], labels, sample, 2.0, 0.1, 10.0
            )
    finally:
        torch.set_default_dtype(torch.float32)
    (path,) = folder.glob("*-database_code.t")
    assert torch.equal(torch.load(path, weights_only=True).double(), codes)
    state = torch.load(folder / f"model_image-{BITS}bits.pt", weights_only=True)
    for name, value in networks.model_image.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10)
    assert json.loads((folder / "config.json").read_text())["processes"] == 2
    assert len(lines_of(folder)) == 2


def lines_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_the_statistics_of_batch_norm_are_the_same_in_every_process(tmp_path):
    """The saved ResNet gives the saved codes, half of which another process has encoded, and a resumed run its bits."""
    folder_tree(tmp_path / "photos", per_class=20)
    flags = ["--dataset", "folder", "--root", tmp_path / "photos", "--query-share", "0.4", "--image-size", "16"]
    flags += ["--backbone", "resnet18", "--weights", "none", "--code-length", BITS, "--seed", SEED, "--batch-size", 8]
    flags += ["--lr", "1e-3", "--max-iter", 2, "--max-epoch", 1, "--save-iter", 1, "--logs", tmp_path / "logs"]
    for process, output in start_job(flags, tmp_path, backbone=True):
        ended(process, output)
    (folder,) = (tmp_path / "logs").iterdir()
    unbroken = outcome(folder)
    network = image_network("resnet18", BITS, weights=None)
    network.load_state_dict(torch.load(folder / f"model_image-{BITS}bits.pt", weights_only=True))
    query = load_data("folder", tmp_path / "photos", Options(seed=SEED, image_size=16, query_share=0.4)).query
    with torch.inference_mode():
        _, code = network.eval()(torch.stack([image for image, _, _ in query]))
    saved = torch.load(next(folder.glob("*-query_code.t")), weights_only=True)
    assert len(saved) == 24 and code.abs().min() > 1e-5 and torch.equal(code.sign(), saved)

    for name in ("results.json", f"checkpoint-{BITS}bits-000002.pt"):
        (folder / name).unlink()
    for process, output in start_job(["--resume", folder], tmp_path, backbone=True):
        ended(process, output)
    assert_same(unbroken, outcome(folder), files=5)


def test_shares_hold_every_row_once_in_as_many_batches():
    database = load_data("digits", "unused", Options(seed=0, image_size=8)).database
    for rows, batch_size in ((61, 16), (129, 64), (64, 16), (7, 64), (500, 3)):
        pass_over = partial(train_batches, database, range(rows), batch_size=batch_size, key=(0,), augment="none")
        shares = [list(pass_over(share=(part, 3))) for part in range(3)]
        assert len({len(batches) for batches in shares}) == 1
        sizes = [len(index) for batches in shares for _, _, index in batches]
        assert min(sizes) == smallest_batch(rows, batch_size, 3)
        assert min(sizes) > 0 and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 2
        seen = torch.cat([index for batches in shares for _, _, index in batches])
        assert seen.sort().values.tolist() == list(range(rows))
        assert min(len(index) for _, _, index in pass_over()) == smallest_batch(rows, batch_size)


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_a_killed_process_ends_the_job_and_the_checkpoint_resumes_it(method, tmp_path):
    flags = [*FLAGS, "--method", method, "--max-iter", 5, "--max-epoch", 1, "--save-iter", 1]
    for process, output in start_job([*flags, "--logs", tmp_path / "unbroken"], tmp_path):
        ended(process, output)
    (reference,) = (tmp_path / "unbroken").iterdir()

    logs = tmp_path / "killed"
    (first, output), (second, _) = start_job([*flags, "--logs", logs], tmp_path, slow=0.1)
    wait_until(lambda: lines(logs) >= 2, first, output)
    second.kill()
    ended(first, output, status=2)
    assert "process 0 of 2 lost the others" in output.read_text() and "--resume" in output.read_text()
    assert "Traceback" not in output.read_text()
    second.join()

    (folder,) = logs.iterdir()
    copied = shutil.copytree(folder, tmp_path / "alone")
    alone = start(["--resume", copied], tmp_path / "output alone")
    ended(alone, tmp_path / "output alone")
    assert "was saved by 2 processes, and now there are 1: the run continues" in (tmp_path / "output alone").read_text()
    assert read_results(copied)[0]["iterations"] == 5
    for process, output in start_job(["--resume", folder], tmp_path):
        ended(process, output)
    assert_same(outcome(reference), outcome(folder), files=5)


def test_only_process_0_looks_after_old_checkpoints(tmp_path):
    """Another process can find one that process 0 removes that moment; here a dangling link stands for it."""
    run_folder = RunFolder(Settings(dataset="digits", logs=str(tmp_path), save_iter=1), torch.device("cpu"))
    run_folder.path.mkdir()
    vanished = run_folder.path / "checkpoint-8bits-000001.pt"
    vanished.symlink_to("gone")
    run_folder.writes = False
    Checkpoint(run_folder, 8, torch.zeros(5, 8)).save(1)
    assert list(run_folder.path.iterdir()) == [vanished]


def test_a_signal_to_one_process_stops_all_of_them(tmp_path):
    logs = tmp_path / "logs"
    flags = [*FLAGS, "--max-iter", 50, "--max-epoch", 1, "--save-iter", 0, "--logs", logs]
    (first, output), (second, other) = start_job(flags, tmp_path, slow=0.1)
    wait_until(lambda: lines(logs) >= 1, first, output)
    os.kill(second.pid, signal.SIGTERM)
    ended(first, output, status=143)
    ended(second, other, status=143)
    (folder,) = logs.iterdir()
    assert f"--resume {folder}" in output.read_text() and len(list(folder.glob("checkpoint-*.pt"))) == 1


def test_torchrun_starts_the_job(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # After "--" torchrun leaves the flags alone; it would take --logs for an abbreviation of its own.
    command += ["-m", "--", "tests.train_small", *map(str, FLAGS), "--max-iter", "1", "--max-epoch", "1"]
    done = subprocess.run(
        [*command, "--logs", str(tmp_path / "logs")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    (folder,) = (tmp_path / "logs").iterdir()
    assert json.loads((folder / "results.json").read_text())[0]["code_length"] == BITS


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    """On a machine with two GPUs; training and encoding take their device from here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert str(own_device("auto")) == str(own_device("cuda")) == "cuda"  # one process: as torch has it
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    assert str(own_device("auto")) == str(own_device("cuda")) == "cuda:1"
    assert str(own_device("cuda:0")) == "cuda:0" and str(own_device("cpu")) == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="only 2 GPUs"):
        own_device("cuda")


def test_a_job_does_not_train_on_one_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert run.main(["--dataset", "digits", "--device", "cuda:1", "--logs", str(tmp_path / "logs")]) == 2
    assert "--device cuda:1: 2 processes cannot train on one GPU; use cuda" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_a_job_refuses_sweeps_and_too_few_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert run.main(["--seeds", "0,1", "--logs", str(tmp_path)]) == 2
    assert "A sweep starts one process per cell itself" in capsys.readouterr().err
    assert run.main(["--num-samples", "7", "--logs", str(tmp_path)]) == 2
    assert "--num-samples 7: the job has 8 processes" in capsys.readouterr().err
