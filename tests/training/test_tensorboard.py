"""The events that --tensorboard writes, read back with TensorBoard's own reader."""

import importlib.util

import numpy as np
import pytest

from training.tensorboard import TensorBoard
from utils.errors import UserError

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def row(iteration, **more):
    return {
        "code_length": 4,
        "iteration": iteration,
        "loss": {"image": 40.0 / iteration, "image_rec": 0.25 * iteration},
        "bit_mean": [-0.5, 0.0, 0.25, 0.5],
        "distinct": 0.1 * iteration,
        "seconds": 2.0,
        **more,
    }


def events(path):
    reader = accumulator.EventAccumulator(str(path), size_guidance={"histograms": 0})
    reader.Reload()
    return reader


def scalars(reader, tag):
    return [(event.step, pytest.approx(event.value)) for event in reader.Scalars(tag)]


def test_scalars_histogram_and_gallery(tmp_path):
    board = TensorBoard(tmp_path, 4)
    board.iteration(row(1))
    board.iteration(row(2, map=0.75, validation_map=0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    board.gallery(pixels, 2)
    board.close()
    assert board.path == tmp_path / "tensorboard" / "4bits"
    reader = events(board.path)
    assert set(reader.Tags()["scalars"]) == {"loss/image", "loss/image_rec", "distinct", "map", "validation_map"}
    assert scalars(reader, "loss/image") == [(1, 40.0), (2, 20.0)]
    assert scalars(reader, "loss/image_rec") == [(1, 0.25), (2, 0.5)]
    assert scalars(reader, "distinct") == [(1, 0.1), (2, 0.2)]
    assert scalars(reader, "map") == [(2, 0.75)] and scalars(reader, "validation_map") == [(2, 0.5)]
    histogram = reader.Histograms("bit_mean")[1]
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.min, value.max, value.sum) == (2, 4, -0.5, 0.5, 0.25)
    (image,) = reader.Images("gallery")
    assert (image.step, image.width, image.height) == (2, 8, 6)


def test_a_resumed_run_hides_what_it_does_again(tmp_path):
    board = TensorBoard(tmp_path, 4)
    for iteration in (1, 2, 3):
        board.iteration(row(iteration))
    board.close()
    board = TensorBoard(tmp_path, 4, done=2)
    board.iteration(row(3) | {"distinct": 0.9})
    board.close()
    assert scalars(events(board.path), "distinct") == [(1, 0.1), (2, 0.2), (3, 0.9)]


def test_code_lengths_do_not_hide_each_other(tmp_path):
    for bits in (4, 8):
        board = TensorBoard(tmp_path, bits, done=0)
        board.iteration(row(1, map=bits / 10))
        board.close()
    assert [scalars(events(tmp_path / "tensorboard" / f"{bits}bits"), "map") for bits in (4, 8)] == [
        [(1, 0.4)],
        [(1, 0.8)],
    ]


def test_without_tensorboard_the_flag_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--tensorboard: needs the package tensorboard"):
        TensorBoard(tmp_path, 4)
    assert not list(tmp_path.iterdir())
