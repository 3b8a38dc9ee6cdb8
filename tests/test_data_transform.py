"""Crops and resizing against torchvision: the same law of the windows, the same pixels for given windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.transforms import functional

from data import resample
from data.data_loader import train_batches
from data.image_dataset import ImageDataset
from data.pixels import MemoryPixels
from data.transform import (
    AUGMENTATIONS,
    FLIP,
    HEIGHT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LEFT,
    OUT_HEIGHT,
    TOP,
    WIDTH,
    draw_windows,
    eval_windows,
    resample_by_matrices,
    resized_size,
    shorter_side_for,
)
from tests.image_trees import photo
from utils.seeding import generator

LAW = AUGMENTATIONS["crop-flip"]


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    return functional.normalize(pixels.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))


def sample_with_torchvision(height: int, width: int, law, count: int) -> np.ndarray:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    return np.array(
        [transforms.RandomResizedCrop.get_params(image, list(law.scale), list(law.ratio)) for _ in range(count)]
    )


@pytest.mark.parametrize("augment", ["crop-flip", "crop"])
@pytest.mark.parametrize("size", [(256, 341), (341, 256), (32, 32), (37, 300)])
def test_windows_follow_torchvisions_law(augment: str, size: tuple[int, int]) -> None:
    """Top, left, height, width, area and ratio of the crops: two-sample Kolmogorov-Smirnov tests on 4,000 draws each.

    (37, 300) is too wide for most tries, so the fallback to a central crop takes part as well.
    """
    law = AUGMENTATIONS[augment]
    count = 4000
    ours = draw_windows(np.tile([size], (count, 1)), 224, law, generator(1, "law"))[:, : WIDTH + 1].astype(float)
    theirs = sample_with_torchvision(*size, law, count).astype(float)
    columns = {"top": TOP, "left": LEFT, "height": HEIGHT, "width": WIDTH}
    for name, column in columns.items():
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, name
    for name, of in (("area", lambda t: t[:, HEIGHT] * t[:, WIDTH]), ("ratio", lambda t: t[:, WIDTH] / t[:, HEIGHT])):
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-3, name


def test_the_law_test_sees_another_law() -> None:
    count = 4000
    ours = draw_windows(np.tile([[256, 341]], (count, 1)), 224, AUGMENTATIONS["crop"], generator(1, "law"))
    theirs = sample_with_torchvision(256, 341, LAW, count)
    assert ks_2samp(ours[:, HEIGHT], theirs[:, HEIGHT]).pvalue < 1e-3


def test_half_of_the_windows_are_mirrored() -> None:
    flips = draw_windows(np.tile([[64, 64]], (4000, 1)), 32, LAW, generator(2))[:, FLIP]
    assert set(flips.tolist()) == {0, 1} and abs(flips.mean() - 0.5) < 4 * 0.5 / 4000**0.5
    assert not draw_windows(np.tile([[64, 64]], (4000, 1)), 32, AUGMENTATIONS["crop"], generator(2))[:, FLIP].any()


def test_one_images_size_does_not_change_anothers_crop() -> None:
    sizes = np.array([[50, 60], [70, 80], [90, 100]])
    other = sizes.copy()
    other[1] = (5, 500)
    one, two = (draw_windows(table, 32, LAW, generator(3)) for table in (sizes, other))
    assert (one[[0, 2]] == two[[0, 2]]).all() and (one[1] != two[1]).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32), st.sampled_from([8, 31, 64]))
def test_every_window_resizes_as_torchvision_does(height: int, width: int, seed: int, size: int) -> None:
    """Crop, resize and mirror image of any box, both made larger and made smaller, compiled and by matrices."""
    random = generator(seed)
    pixels = torch.randint(0, 256, (1, 3, height, width), generator=random, dtype=torch.uint8)
    table = draw_windows(np.array([[height, width]]), size, LAW, random)
    top, left, crop_height, crop_width = table[0, : WIDTH + 1].tolist()
    want = functional.resized_crop(pixels[0].float(), top, left, crop_height, crop_width, [size, size], antialias=True)
    want = normalise(want.flip(-1) if table[0, FLIP] else want)
    out = np.empty((1, 3, size, size), dtype=np.float32)
    MemoryPixels(pixels).fill(np.array([0]), table, out)
    assert torch.allclose(torch.from_numpy(out[0]), want, atol=2e-4, rtol=0)
    assert torch.allclose(resample_by_matrices(pixels, table, size)[0], want, atol=2e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(0, 2**32), st.booleans())
def test_the_rows_said_to_be_needed_are_enough(height: int, width: int, seed: int, evaluate: bool) -> None:
    random = generator(seed)
    pixels = torch.randint(0, 256, (1, 3, height, width), generator=random, dtype=torch.uint8)
    sizes = np.array([[height, width]])
    table = eval_windows(sizes, 28, 32) if evaluate else draw_windows(sizes, 28, LAW, random)
    whole, part = (np.empty((3, 28, 28), dtype=np.float32) for _ in range(2))
    rows_first = np.ascontiguousarray(pixels[0].permute(1, 0, 2).numpy())
    resample.resample_one(rows_first, 0, table[0], whole)
    first, last = (int(bound[0]) for bound in resample.rows_needed(table, 28))
    assert 0 <= first < last <= height
    resample.resample_one(rows_first[first:last].copy(), first, table[0], part)
    assert np.array_equal(whole, part)


@pytest.mark.parametrize("size", [(256, 341), (300, 256), (32, 32), (20, 47), (45, 33)])
def test_evaluation_is_resize_and_center_crop(size: tuple[int, int]) -> None:
    height, width = size
    image = torch.from_numpy(np.asarray(photo(1, width, height)).copy()).permute(2, 0, 1)
    want = functional.center_crop(functional.resize(image.float(), [256], antialias=True), [224, 224])
    table = eval_windows(np.array([size]), 224, shorter_side_for(224))
    out = np.empty((1, 3, 224, 224), dtype=np.float32)
    MemoryPixels(image[None]).fill(np.array([0]), table, out)
    assert torch.allclose(torch.from_numpy(out[0]), normalise(want), atol=2e-4, rtol=0)


def test_evaluation_of_a_pillow_image_agrees_to_a_grey_level() -> None:
    """The usual way rounds to whole grey levels while it resizes; nothing else differs."""
    image = photo(2, 47, 38)
    usual = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(56), transforms.PILToTensor()])(image)
    source = MemoryPixels(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
    dataset = ImageDataset(source, np.array([0]), torch.ones(1, 1), 56, 64)
    ours = dataset[0][0] * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    assert (255 * ours - usual.float()).abs().max() <= 1.01


def test_resized_size_is_torchvisions() -> None:
    for height, width in [(100, 333), (333, 100), (7, 5), (256, 256), (1, 40)]:
        resized = functional.resize(torch.zeros(1, height, width), [37], antialias=True)
        assert resized.shape[1:] == resized_size(height, width, 37)
    assert [shorter_side_for(size) for size in (224, 64, 32, 448)] == [256, 73, 37, 512]


def test_extreme_shapes() -> None:
    """A line of pixels, and a crop made many times smaller."""
    line = MemoryPixels(torch.full((1, 3, 1, 3000), 200, dtype=torch.uint8))
    for table in (eval_windows(np.array([[1, 3000]]), 28, 32), draw_windows(line.sizes, 28, LAW, generator(0))):
        out = np.empty((1, 3, 28, 28), dtype=np.float32)
        line.fill(np.array([0]), table, out)
        assert np.allclose(out[0], normalise(torch.full((3, 28, 28), 200)).numpy(), atol=1e-4)
    assert table[0, OUT_HEIGHT] == 28


def test_without_compiled_code_the_batches_are_the_same_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randint(0, 256, (10, 3, 32, 32), generator=generator(4), dtype=torch.uint8)
    dataset = ImageDataset(MemoryPixels(pixels), np.arange(10), torch.eye(10), 48, 55)

    def batch() -> torch.Tensor:
        ((images, _, _),) = train_batches(dataset, range(10), batch_size=10, key=(5,), augment="crop-flip")
        return images

    fast = batch()
    monkeypatch.setattr(resample, "COMPILED", False)
    slow = batch()
    assert torch.allclose(fast, slow, atol=1e-4, rtol=0) and not torch.equal(fast, torch.zeros_like(fast))
