"""Digits: protocol, and the images that belong to the labels."""

from __future__ import annotations

import numpy as np
import torch

from data import Options, load_data


def test_digits() -> None:
    from sklearn.datasets import load_digits

    split = load_data("digits", "nowhere", Options(seed=5))
    assert (len(split.query), len(split.database), split.num_classes) == (300, 1497, 10)
    assert split.query.labels.sum(0).tolist() == [30] * 10
    image, label, index = split.query[7]
    assert image.shape == (3, 64, 64) and label.shape == (10,) and index == 7
    original = load_digits()
    row = int(split.query.rows[7])
    assert int(label.argmax()) == original.target[row]
    small = torch.nn.functional.avg_pool2d(split.query.pixels([7])[0].float()[None], 8)[0, 0]
    assert np.corrcoef(small.flatten(), original.images[row].flatten())[0, 1] > 0.95
    assert load_data("digits", "nowhere", Options(image_size=32)).query[0][0].shape == (3, 32, 32)
