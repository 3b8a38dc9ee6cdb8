"""A run that diverges ends with one message, whatever the method and wherever it shows first."""

import re

import pytest
import torch
from torch import nn

import main_mmasia
import main_tomm
import run
from baselines import adsh, symmetric
from modules import discrete
from tests.small_networks import shrink
from training.divergence import require_codes, require_finite_state
from training.settings import ALL_METHODS
from utils.errors import UserError

# One batch: the weights are wrong only after the last loss has been computed.
FLAGS = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--max-epoch", "1", "--code-length", "8"]
FLAGS += ["--max-iter", "1", "--save-iter", "1"]


@pytest.fixture
def small(monkeypatch):
    for main in (main_mmasia, main_tomm, adsh, symmetric):
        shrink(monkeypatch, main)


@pytest.mark.parametrize("flags", [["--weight-decay", "1e308"], ["--lr", "1e38"]], ids=" ".join)
@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_run_whose_last_step_diverges_is_an_error(method, flags, tmp_path, small, capsys):
    assert run.main([*FLAGS, "--method", method, *flags, "--logs", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"run\.py: Training diverged: .+ at iteration 1; lower --lr or --weight-decay\. Earlier checkpoints are kept\.",
        error,
    ), error
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("*.t")) and not list(folder.glob("*.pt"))


def test_the_adversarial_losses_diverge_with_the_same_message(tmp_path, small, capsys):
    """Binary cross-entropy refuses NaN with a traceback, or on a GPU with an assertion that ends the process."""
    flags = ["--method", "main_tomm", "--lr", "1e20", "--batch-size", "20", "--logs", str(tmp_path)]
    assert run.main([*FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert "Training diverged: the loss (" in error and "Traceback" not in error


def test_what_is_not_finite_is_named():
    network = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters())
    require_finite_state({"model_image": network, "optimizer": optimizer}, 1)
    network(torch.full((1, 2), 1e25)).sum().backward()  # the square of the gradient is infinite
    with pytest.raises(UserError, match="optimizer holds numbers that are not finite at iteration 3"):
        optimizer.step()
        require_finite_state({"model_image": network, "optimizer": optimizer}, 3)
    for value in (float("nan"), float("inf")):
        norm = nn.BatchNorm1d(2)
        norm.running_var[1] = value
        with pytest.raises(UserError, match="model_image holds numbers"):
            require_finite_state({"model_image": norm}, 1)
    codes = torch.tensor([[1.0, -1.0], [0.0, 1.0]])
    require_codes(codes, "query", 1)
    with pytest.raises(UserError, match="the query codes are 0 at iteration 2"):
        require_codes(codes * torch.tensor([1.0, 0.0]), "query", 2)
    with pytest.raises(UserError, match="the query codes are not finite numbers"):
        require_codes(codes / 0, "query", 2)


def test_a_bit_that_cannot_be_decided_is_not_a_number():
    linear = torch.tensor([[1.0, -2.0, 0.0], [1.0, 2.0, float("nan")], [1.0, 2.0, float("inf")]])
    learned = discrete.coordinate_descent(torch.zeros(3, 3), linear, torch.eye(3))
    assert learned.nan_to_num(7).tolist() == [[1, -1, 1], [1, 1, 7], [1, 1, 7]]


def test_codes_that_are_all_the_same_are_reported(tmp_path, small, capsys):
    assert run.main([*FLAGS, "--lr", "1e3", "--logs", str(tmp_path)]) == 0
    assert "All 300 query codes are the same, so no ranking says anything" in capsys.readouterr().err
