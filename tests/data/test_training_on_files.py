"""Both mains train on every kind of dataset, called as a user calls run.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import main_mmasia
import main_tomm
import run
from baselines import adsh, symmetric
from tests import image_trees as trees
from tests.small_networks import shrink

TREES = {
    "cifar-10": (trees.cifar10_tree, 20, 220, 10),
    "nus-wide-tc21": (trees.nus_wide_tc21_tree, 6, 30, 21),
    "nus-wide-tc10": (trees.nus_wide_tc10_tree, 6, 24, 10),
    "flickr25k": (trees.flickr_tree, 6, 24, 38),
    "imagenet": (trees.imagenet_tree, 9, 24, 3),
    "folder": (trees.folder_tree, 6, 24, 3),
    "lists": (trees.lists_tree, 6, 24, 5),
}


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
@pytest.mark.parametrize("dataset", TREES)
def test_training(dataset: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for main in (main_mmasia, main_tomm):
        shrink(monkeypatch, main, dropout=0.5)
    build, num_query, num_database, num_classes = TREES[dataset]
    build(tmp_path / "dataset")
    if dataset == "cifar-10":
        trees.trust_cifar10(tmp_path / "dataset", monkeypatch)
    flags = [
        *("--method", method, "--dataset", dataset, "--root", tmp_path / "dataset", "--logs", tmp_path / "logs"),
        *("--num-query", num_query, "--image-size", 16, "--weights", "none", "--code-length", 8),
        *("--num-samples", num_database - 4, "--max-iter", 2, "--max-epoch", 1, "--batch-size", 8, "--device", "cpu"),
        *("--num-workers", 1, "--topk", -1),
    ]
    assert run.main([str(flag) for flag in flags]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    (row,) = json.loads((folder / "results.json").read_text())
    assert row["dataset"] == dataset and 0 < row["map"]["network"]["expected"] <= 1
    (path,) = folder.glob("*-database_targets.t")
    assert torch.load(path, weights_only=True).shape == (num_database, num_classes)
    (path,) = folder.glob("*-query_code.t")
    assert torch.load(path, weights_only=True).shape == (num_query, 8)


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm", "adsh", "dpsh"])
def test_a_training_pool_outside_the_database(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--protocol train-5000: codes learned for other images cannot be searched, so that only "network" is left."""
    for main in (main_mmasia, main_tomm, adsh, symmetric):
        shrink(monkeypatch, main, dropout=0.5)
    monkeypatch.setattr("data.datasets.NUM_TRAIN", 6)
    trees.folder_tree(tmp_path / "dataset")  # 30 images of 3 classes
    flags = [
        *("--method", method, "--dataset", "folder", "--root", tmp_path / "dataset", "--logs", tmp_path / "logs"),
        *("--protocol", "train-5000", "--num-query", 6, "--image-size", 16, "--weights", "none", "--code-length", 8),
        *("--max-iter", 2, "--eval-iter", 1, "--max-epoch", 1, "--batch-size", 3, "--device", "cpu"),
    ]
    assert run.main([str(flag) for flag in flags]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    (row,) = json.loads((folder / "results.json").read_text())
    assert row["map"].keys() == {"network"} and row["never_drawn"] == 0
    (path,) = folder.glob("*-database_code.t")
    assert torch.load(path, weights_only=True).shape == (18, 8)


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.lists_tree(tmp_path)
    (tmp_path / "my images" / "3.png").write_bytes(b"damaged")
    flags = ["--dataset", "lists", "--root", str(tmp_path), "--weights", "none", "--logs", str(tmp_path / "logs")]
    status = run.main(flags)
    message = capsys.readouterr().err
    assert status == 2 and "my images/3.png" in message and "Traceback" not in message
