"""Crops and resizing against torchvision: the same law of the windows, the same pixels for given windows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision import transforms
from torchvision.models import AlexNet_Weights
from torchvision.transforms.v2 import functional

from data.image_dataset import ImageDataset
from data.pixels import MemoryPixels
from data.transform import AUGMENTATIONS, BatchResampler, draw_windows, make_image
from data.windows import (
    FLIP,
    HEIGHT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LEFT,
    OUT_HEIGHT,
    PIXEL_BIAS,
    PIXEL_SCALE,
    TOP,
    WIDTH,
    eval_windows,
    resized_size,
    shorter_side_for,
)
from tests.image_trees import photo
from utils.seeding import generator

LAW = AUGMENTATIONS["crop-flip"]


with_avx = pytest.mark.skipif(
    "AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torchvision resizes 8 bits by way of floats"
)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """As the code does it, so that equal results mean equal pixels: each grey level has a value of its own."""
    return pixels.float() * torch.from_numpy(PIXEL_SCALE)[:, None, None] + torch.from_numpy(PIXEL_BIAS)[:, None, None]


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation: 0..255, fractions kept."""
    return (images - torch.from_numpy(PIXEL_BIAS)[:, None, None]) / torch.from_numpy(PIXEL_SCALE)[:, None, None]


def made(pixels: torch.Tensor, table: np.ndarray, size: int) -> torch.Tensor:
    """Images of uint8 [N, 3, h, w] by their windows, as a batch on the CPU has them: float32 [N, 3, S, S]."""
    out = np.empty((len(pixels), 3, size, size), dtype=np.float32)
    MemoryPixels(pixels).fill(np.arange(len(pixels)), table, out)
    return torch.from_numpy(out)


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


def test_normalisation_is_torchvisions() -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    want = functional.normalize(functional.to_dtype(levels, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert torch.allclose(normalise(levels), want, atol=1e-6, rtol=0)
    assert all(len(values.unique()) == 256 for values in normalise(levels))


@with_avx
@settings(max_examples=100, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32), st.sampled_from([8, 31, 64]))
def test_every_window_is_torchvisions_to_the_bit(height: int, width: int, seed: int, size: int) -> None:
    """Crop, resize and mirror image of any box, both made larger and made smaller."""
    random = generator(seed)
    pixels = torch.randint(0, 256, (1, 3, height, width), generator=random, dtype=torch.uint8)
    table = draw_windows(np.array([[height, width]]), size, LAW, random)
    top, left, crop_height, crop_width = table[0, : WIDTH + 1].tolist()
    want = functional.resized_crop(pixels[0], top, left, crop_height, crop_width, [size, size], antialias=True)
    want = functional.horizontal_flip(want) if table[0, FLIP] else want
    assert torch.equal(made(pixels, table, size)[0], normalise(want))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32), st.booleans())
def test_all_ways_agree_to_a_grey_level(height: int, width: int, seed: int, evaluate: bool) -> None:
    """torch rounds to whole grey levels after each direction, half a level each; the ways of whole batches never do."""
    random = generator(seed)
    pixels = torch.randint(0, 256, (3, 3, height, width), generator=random, dtype=torch.uint8)
    sizes = np.tile([[height, width]], (3, 1))
    table = eval_windows(sizes, 28, 32) if evaluate else draw_windows(sizes, 28, LAW, random)
    whole = slice(0, 3)
    resampler = BatchResampler(table, 28)
    matrices, sums = resampler.by_matrices(pixels, whole), resampler.by_sums(pixels, whole)
    assert (grey_levels(made(pixels, table, 28)) - grey_levels(sums)).abs().max() <= 1.01
    assert (grey_levels(matrices) - grey_levels(sums)).abs().max() <= 1e-3
    last = resampler.by_sums(pixels, whole, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, sums)


@pytest.mark.parametrize("size", [(32, 32), (200, 31)])
def test_sums_do_not_depend_on_the_batch_nor_on_threads(size: tuple[int, int]) -> None:
    """To the last bit; the second size is made smaller in one direction, with different numbers of taps."""
    random = generator(8)
    pixels = torch.randint(0, 256, (21, 3, *size), generator=random, dtype=torch.uint8)
    table = draw_windows(np.tile([size], (21, 1)), 130, LAW, random)
    assert 0 < table[:, FLIP].sum() < 21
    want = BatchResampler(table, 130).by_sums(pixels, slice(0, 21))
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(BatchResampler(table, 130).by_sums(pixels, slice(0, 21)), want)
    finally:
        torch.set_num_threads(threads)
    for low, high in [(0, 1), (1, 8), (8, 21)]:
        part = BatchResampler(table[low:high], 130).by_sums(pixels[low:high], slice(0, high - low))
        assert torch.equal(part, want[low:high])
        assert torch.equal(BatchResampler(table, 130).by_sums(pixels[low:high], slice(low, high)), want[low:high])


@with_avx
@pytest.mark.parametrize("size", [(256, 341), (300, 256), (32, 32), (20, 47), (45, 33)])
def test_evaluation_is_resize_and_center_crop_to_the_bit(size: tuple[int, int]) -> None:
    height, width = size
    image = torch.from_numpy(np.asarray(photo(1, width, height)).copy()).permute(2, 0, 1)
    want = functional.center_crop(functional.resize(image, [256], antialias=True), [224, 224])
    table = eval_windows(np.array([size]), 224, shorter_side_for(224))
    assert torch.equal(made(image[None], table, 224)[0], normalise(want))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks the system for the process's threads")
@with_avx
def test_no_thread_starts_others() -> None:
    """A batch has threads of its own: more of them, which torch starts for large images, would wait for each other."""
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    windows = draw_windows(np.tile([[300, 400]], (8, 1)), 224, LAW, generator(7))
    out = np.empty((3, 224, 224), dtype=np.float32)
    counts = []

    def work() -> None:
        before = len(os.listdir("/proc/self/task"))
        for window in windows:
            make_image(image[window[TOP] : window[TOP] + window[HEIGHT]], window, out)
        counts.append(len(os.listdir("/proc/self/task")) - before)
        torch.ones(10**6).add_(1)  # this does start others
        counts.append(len(os.listdir("/proc/self/task")) - before)

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(threads)
    assert counts[0] == 0 < counts[1]


@pytest.mark.parametrize(("height", "width"), [(47, 38), (300, 401)])
def test_evaluation_is_what_torchvision_says_of_its_weights(height: int, width: int) -> None:
    """Pillow rounds to whole grey levels while it resizes; nothing else differs."""
    image, preset = photo(2, height, width), AlexNet_Weights.IMAGENET1K_V1.transforms()
    source = MemoryPixels(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None])
    dataset = ImageDataset(source, np.array([0]), torch.ones(1, 1), 224, shorter_side_for(224))
    levels = (dataset[0][0] - preset(image)) * torch.tensor(preset.std)[:, None, None] * 255
    assert levels.abs().max() <= 1.01
    assert (tuple(preset.mean), tuple(preset.std)) == (IMAGENET_MEAN, IMAGENET_STD)


def test_resized_size_is_torchvisions() -> None:
    for height, width in [(100, 333), (333, 100), (7, 5), (256, 256), (1, 40)]:
        resized = functional.resize(torch.zeros(1, height, width), [37], antialias=True)
        assert resized.shape[1:] == resized_size(height, width, 37)
    assert [shorter_side_for(size) for size in (224, 64, 32, 448)] == [256, 73, 37, 512]


@pytest.mark.parametrize("size", [(3, 400), (400, 3), (20, 1000), (1, 90)])
def test_of_thin_images_only_the_kept_part_is_made(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels of Resize and CenterCrop, but never the whole of Resize: of 20,000 × 1 pixels, that takes 4.7 GB."""
    pixels = torch.randint(0, 256, (1, 3, *size), generator=generator(8), dtype=torch.uint8)
    table = eval_windows(np.array([size]), 56, 64)
    whole = functional.center_crop(functional.resize(pixels[0], [64], antialias=True), [56, 56])
    monkeypatch.setattr("data.transform.interpolate", lambda *_, **__: pytest.fail("made as a whole"))
    assert (grey_levels(made(pixels, table, 56)[0]) - whole).abs().max() <= 1.01


def test_extreme_shapes() -> None:
    """A line of pixels, and a crop made many times smaller."""
    line = torch.full((1, 3, 1, 3000), 200, dtype=torch.uint8)
    sizes = np.array([[1, 3000]])
    for table in (eval_windows(sizes, 28, 32), draw_windows(sizes, 28, LAW, generator(0))):
        assert torch.equal(made(line, table, 28)[0], normalise(torch.full((3, 28, 28), 200)))
    assert table[0, OUT_HEIGHT] == 28
