"""Signs of life of a run: an estimate after the first pass, and a bar while the network encodes."""

from types import SimpleNamespace

import pytest
import torch

import main_mmasia
import run
from tests.small_networks import shrink
from training import progress
from training.settings import Settings


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (5970, "1 h 40 min"), (90_000, "25 h 00 min")],
)
def test_a_time_in_words(seconds, text):
    assert progress.duration(seconds) == text


def first_pass(seconds, monkeypatch, device="cpu", finished=(), done=0, **settings):
    """End the first pass of a run of three code lengths after so many seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    given = {"num_samples": 600, "max_iter": 10, "max_epoch": 3, "code_length": (12, 24, 32), **settings}
    folder = SimpleNamespace(
        settings=Settings.for_dataset("digits", **given),
        is_finished=lambda code_length: code_length in finished,
        device=torch.device(device),
    )
    with progress.Progress(folder, 24, done, encoded=1800) as shown:
        for iteration, epoch in ((done, 0), (done, 1)):
            now[0] += seconds
            shown.step({"loss": torch.tensor(1.0)})
            shown.end_pass(iteration, epoch)


def test_the_first_pass_gives_an_estimate_of_the_run(monkeypatch, caplog):
    caplog.set_level("INFO")
    # Two code lengths of 10 iterations, 4 of which are done, of 3 passes; an image is encoded in a third of the time.
    first_pass(10, monkeypatch, finished=(12,), done=4)
    passes, encoding = (2 * 10 - 4) * 3 - 1, 2 * 1800 / 600 / 3
    assert progress.duration(10 * (passes + encoding)) == "8 min"
    assert caplog.messages == ["The first pass took 10 s: the rest of the run takes about 8 min"]
    assert caplog.records[0].levelname == "INFO"


@pytest.mark.parametrize(("device", "level"), [("cpu", "WARNING"), ("cuda", "INFO")])
def test_more_than_an_hour_on_a_cpu_is_a_warning(device, level, monkeypatch, caplog):
    caplog.set_level("INFO")
    first_pass(60, monkeypatch, device)
    (record,) = caplog.records
    assert record.levelname == level
    assert record.getMessage().startswith("The first pass took 60 s: the rest of the run takes about 92 min")
    assert ("on the CPU; a GPU, a smaller --image-size" in record.getMessage()) == (device == "cpu")


def test_every_encoding_has_a_bar(tmp_path, monkeypatch):
    shrink(monkeypatch, main_mmasia)
    shown = []
    bar = progress.progress_bar
    monkeypatch.setattr(
        "training.network_codes.progress_bar",
        lambda text, total, unit: shown.append((text, total)) or bar(text, total, unit),
    )
    flags = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--max-iter", "1", "--max-epoch", "1"]
    assert run.main([*flags, "--code-length", "8", "--validate", "50", "--logs", str(tmp_path)]) == 0
    halves = [("query", 300), ("validation", 50), ("query", 300), ("database", 1447)]
    assert shown == [(f"8 bits: encoding the {half}", total) for half, total in halves]
