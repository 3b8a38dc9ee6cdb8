"""--validate: an iteration is selected on held-out database images, never on the test queries."""

import json

import numpy as np
import pytest
import torch

import main_mmasia
import run
from data import Options, hold_out, load_data
from tests.small_networks import shrink
from training import recorder
from utils.evaluate import mean_average_precision

FLAGS = ["--dataset", "digits", "--image-size", "16", "--num-samples", "200", "--code-length", "8", "--lr", "1e-2"]
FLAGS += ["--max-iter", "6", "--max-epoch", "2", "--eval-iter", "1", "--validate", "150"]


def test_held_out_images_are_in_neither_half():
    split = load_data("digits", "unused", Options(seed=3, image_size=16))
    held = hold_out(split, 150, seed=3)
    rows = {name: set(getattr(held, name).rows.tolist()) for name in ("query", "database", "validation")}
    assert len(held.validation) == 150 and len(held.database) == len(split.database) - 150
    assert rows["database"] | rows["validation"] == set(split.database.rows.tolist())
    assert not rows["database"] & rows["validation"] and rows["query"] == set(split.query.rows.tolist())
    again = hold_out(split, 150, seed=3)
    assert np.array_equal(held.validation.rows, again.validation.rows)
    assert not np.array_equal(held.validation.rows, hold_out(split, 150, seed=4).validation.rows)
    # A row keeps its own label and image.
    position = 7
    source = split.database.rows.tolist().index(held.validation.rows[position])
    assert torch.equal(held.validation.labels[position], split.database.labels[source])
    assert torch.equal(held.validation[position][0], split.database[source][0])


def test_the_reported_iteration_is_the_one_that_did_best_on_the_held_out_images(tmp_path, monkeypatch, capsys):
    shrink(monkeypatch, main_mmasia, dropout=0.5)
    assert run.main([*FLAGS, "--logs", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    (row,) = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chosen = max(lines, key=lambda line: line["validation_map"])
    assert row["selected"] == {"iteration": chosen["iteration"], "validation": chosen["validation_map"]}
    assert row["map"]["learned"]["expected"] == pytest.approx(chosen["map"], abs=1e-12)
    assert row["best"]["expected"] == max(line["map"] for line in lines)
    assert f"iteration {chosen['iteration']} was selected on held-out images" in capsys.readouterr().out
    parts = {
        name: torch.load(next(folder.glob(f"*-{name}.t")), weights_only=True)
        for name in ("query_code", "database_code", "query_targets", "database_targets")
    }
    assert len(parts["database_code"]) == 1497 - 150
    assert mean_average_precision(*parts.values()) == pytest.approx(chosen["map"], abs=1e-12)


def test_an_earlier_iteration_can_be_selected_and_a_resumed_run_remembers_it(tmp_path, monkeypatch):
    shrink(monkeypatch, main_mmasia, dropout=0.5)
    real = recorder.Recorder._map
    falling = iter([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])

    def fall(self, query_code, query_labels, *rest):
        validation = self.split.validation is not None and query_labels is self.split.validation.labels
        return next(falling) if validation else real(self, query_code, query_labels, *rest)

    monkeypatch.setattr(recorder.Recorder, "_map", fall)
    assert run.main([*FLAGS, "--logs", str(tmp_path), "--save-iter", "1"]) == 0
    (folder,) = tmp_path.iterdir()
    (row,) = json.loads((folder / "results.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert row["selected"] == {"iteration": 1, "validation": 0.9}
    assert row["map"]["learned"]["expected"] == lines[0]["map"] and lines[0]["map"] != lines[-1]["map"]
    (folder / "results.json").unlink()
    assert run.main(["--resume", str(folder)]) == 0
    (again,) = json.loads((folder / "results.json").read_text())
    assert again["selected"] == row["selected"] and again["map"] == row["map"]


def test_without_validate_the_last_iteration_is_reported(tmp_path, monkeypatch):
    shrink(monkeypatch, main_mmasia, dropout=0.5)
    flags = [flag for flag in FLAGS if flag not in ("--validate", "150")]
    assert run.main([*flags, "--logs", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    (row,) = json.loads((folder / "results.json").read_text())
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert "selected" not in row and row["map"]["learned"]["expected"] == last["map"]


def test_too_many_held_out(tmp_path, capsys):
    assert run.main(["--dataset", "digits", "--validate", "1496", "--logs", str(tmp_path)]) == 2
    assert "--validate 1496: the database has only 1497 images" in capsys.readouterr().err
