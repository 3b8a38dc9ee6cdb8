"""Batches: what they hold, that their key alone decides it, and that no tensor is overwritten while it is in use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data import ImageDataset, Options, load_data
from data.data_loader import eval_batches, train_batches
from data.pixels import MemoryPixels
from data.windows import PIXEL_SCALE
from utils.errors import UserError
from utils.seeding import generator


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    pixels = torch.randint(0, 256, (50, 3, 20, 24), generator=generator(0), dtype=torch.uint8)
    rows = np.arange(49, 9, -1)  # a dataset's rows need not be those of its source
    return ImageDataset(MemoryPixels(pixels), rows, torch.eye(40)[:, :7], 16, 18)


def same(one: list, two: list) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_batch_holds_images_labels_and_rows(dataset: ImageDataset) -> None:
    loader = train_batches(dataset, [3, 5, 8, 13, 21], batch_size=2, key=(1,), augment="crop-flip")
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [len(batch[2]) for batch in batches] == [2, 2, 1]  # the last, smaller one is kept
    for images, labels, index in batches:
        assert images.dtype == torch.float32 and images.shape == (len(index), 3, 16, 16)
        assert labels.dtype == torch.float32 and torch.equal(labels, dataset.labels[index])
        assert index.dtype == torch.int64
    assert sorted(torch.cat([index for _, _, index in batches]).tolist()) == [3, 5, 8, 13, 21]


def test_images_belong_to_their_rows(dataset: ImageDataset) -> None:
    for images, _, index in train_batches(dataset, range(40), batch_size=7, key=(2,), augment="none"):
        for image, row in zip(images, index.tolist(), strict=True):
            assert torch.equal(image, dataset[row][0])


def test_a_key_replays_and_another_does_not(dataset: ImageDataset) -> None:
    def batches(*key: int | str) -> list:
        return list(train_batches(dataset, range(40), batch_size=16, key=key, augment="crop-flip"))

    assert same(batches(7, "batches", 3), batches(7, "batches", 3))
    for other in [(8, "batches", 3), (7, "batches", 4), (7, "others", 3)]:
        assert not torch.equal(batches(7, "batches", 3)[0][2], batches(*other)[0][2])


def test_a_loader_can_be_read_twice_and_ignores_the_global_generators(dataset: ImageDataset) -> None:
    loader = train_batches(dataset, range(40), batch_size=16, key=(1,), augment="crop")
    before = list(loader)
    torch.manual_seed(123)
    np.random.seed(5)  # noqa: NPY002 - the point is that the legacy global state does not matter
    state = torch.get_rng_state()
    assert same(before, list(loader))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_threads_do_not_change_batches(dataset: ImageDataset, num_workers: int) -> None:
    options = {"batch_size": 6, "key": (9,), "augment": "crop-flip"}
    want = list(train_batches(dataset, range(40), **options))
    assert same(want, list(train_batches(dataset, range(40), num_workers=num_workers, **options)))


def test_kept_batches_are_not_overwritten(dataset: ImageDataset) -> None:
    """Memory is used again, but only when no tensor, nor a view or an array of it, needs it."""
    loader = train_batches(dataset, range(40), batch_size=4, key=(1,), augment="crop-flip")
    kept, copies = [], []
    for images, _, _ in loader:
        kept.append((images[1:2], images.numpy(), images[:, 0]))
        copies.append(images.clone())
        del images
    for (view, array, channel), copy in zip(kept, copies, strict=True):
        assert torch.equal(view, copy[1:2]) and np.array_equal(array, copy.numpy()) and torch.equal(channel, copy[:, 0])


def test_memory_is_used_again(dataset: ImageDataset) -> None:
    loader = train_batches(dataset, range(40), batch_size=4, key=(1,), augment="none")
    addresses = set()
    for batch in loader:
        addresses.add(batch[0].data_ptr())
        del batch
    assert len(addresses) <= 2


def test_saved_for_backward_is_not_overwritten(dataset: ImageDataset) -> None:
    weight = torch.zeros((), requires_grad=True)
    losses, sums = [], []
    for images, _, _ in train_batches(dataset, range(40), batch_size=8, key=(3,), augment="crop-flip"):
        sums.append(images.double().sum().item())
        losses.append((images * weight).double().sum())
        del images
    gradients = [torch.autograd.grad(loss, weight)[0].item() for loss in losses]
    assert gradients == pytest.approx(sums, rel=1e-3, abs=1e-2)


def test_stopping_early_leaves_no_thread(dataset: ImageDataset) -> None:
    import threading

    iterator = iter(train_batches(dataset, range(40), batch_size=2, key=(1,), augment="crop", num_workers=2))
    next(iterator)
    iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch")]


def test_evaluation_goes_in_order(dataset: ImageDataset) -> None:
    batches = list(eval_batches(dataset, batch_size=16))
    assert torch.equal(torch.cat([batch[2] for batch in batches]), torch.arange(40))
    assert torch.equal(torch.cat([batch[1] for batch in batches]), dataset.labels)
    assert torch.equal(torch.cat([batch[0] for batch in batches])[17], dataset[17][0])
    ((images, labels, index),) = eval_batches(dataset, batch_size=16, indices=[5, 2], num_workers=1)
    assert index.tolist() == [5, 2] and torch.equal(images[1], dataset[2][0]) and torch.equal(labels[0], dataset[5][1])


def test_channels_last_changes_the_layout_only(dataset: ImageDataset) -> None:
    options = {"batch_size": 40, "key": (4,), "augment": "crop-flip"}
    ((plain, _, _),) = train_batches(dataset, range(40), **options)
    ((other, _, _),) = train_batches(dataset, range(40), channels_last=True, **options)
    assert other.is_contiguous(memory_format=torch.channels_last) and torch.equal(plain, other)


def test_the_way_of_a_gpu_gives_the_same_images(dataset: ImageDataset) -> None:
    """On a device with memory of its own a collection in memory is kept there and batches are made there.

    They are the same to a grey level, to which the CPU's are rounded.
    """
    loader = train_batches(dataset, range(40), batch_size=16, key=(6,), augment="crop-flip")
    want = list(loader)

    loader._by_matrices = True
    got = list(loader)
    assert not same(want, got)
    for one, two in zip(want, got, strict=True):
        assert torch.equal(one[1], two[1]) and torch.equal(one[2], two[2])
        assert ((one[0] - two[0]).abs() <= 1.01 * torch.from_numpy(PIXEL_SCALE)[:, None, None]).all()


@pytest.fixture(scope="module")
def large(dataset: ImageDataset) -> ImageDataset:
    """The same stored images for networks of 128 pixels: augmented batches of them are made as a whole."""
    return ImageDataset(dataset.source, dataset.rows, dataset.labels, 128, 146)


def test_large_augmented_batches_are_the_same_images(large: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches agree with images made one at a time to a grey level; evaluation is never made as a whole."""
    options = {"batch_size": 16, "key": (6,), "augment": "crop-flip"}
    got = list(train_batches(large, range(40), **options))
    evaluated = (
        list(eval_batches(large, batch_size=16)),
        list(train_batches(large, range(40), **{**options, "augment": "none"})),
    )
    monkeypatch.setattr("data.data_loader._WHOLE_FROM", 129)
    want = list(train_batches(large, range(40), **options))
    assert not same(want, got)
    for one, two in zip(want, got, strict=True):
        assert torch.equal(one[1], two[1]) and torch.equal(one[2], two[2])
        assert ((one[0] - two[0]).abs() <= 1.01 * torch.from_numpy(PIXEL_SCALE)[:, None, None]).all()
    assert same(evaluated[0], list(eval_batches(large, batch_size=16)))
    assert same(evaluated[1], list(train_batches(large, range(40), **{**options, "augment": "none"})))


def test_large_batches_depend_on_their_key_alone(large: ImageDataset) -> None:
    """Neither their size, nor threads, nor the memory format, nor the share of a process changes an image's bits."""

    def images(batch_size: int, **options) -> torch.Tensor:
        batches = train_batches(large, range(40), batch_size=batch_size, key=(6,), augment="crop-flip", **options)
        found = torch.empty(40, 3, 128, 128)
        for batch, _, index in batches:
            found[index] = batch
        return found

    want = images(40)
    assert torch.equal(want, images(7)) and torch.equal(want, images(16, num_workers=3))
    assert torch.equal(want, images(16, channels_last=True)) and not torch.equal(want[:, :, :, 0], want[:, :, :, 5])
    shares = [
        batch
        for share in (0, 1)
        for batch in train_batches(large, range(40), batch_size=9, key=(6,), augment="crop-flip", share=(share, 2))
    ]
    assert torch.equal(want[torch.cat([index for _, _, index in shares])], torch.cat([batch for batch, _, _ in shares]))
    assert sum(len(index) for _, _, index in shares) == 40


def test_empty_passes_and_batches(dataset: ImageDataset, large: ImageDataset) -> None:
    """A process may have fewer images than there are batches (`share`)."""
    for data in (dataset, large):
        assert list(train_batches(data, [], batch_size=4, key=(1,), augment="crop-flip")) == []
        options = {"batch_size": 1, "key": (1,), "augment": "crop-flip", "share": (1, 2)}
        counts = [len(images) for images, _, _ in train_batches(data, range(3), **options)]
        assert sorted(counts) == [0, 1]


def test_torchs_own_loader_takes_the_dataset(dataset: ImageDataset) -> None:
    images, labels, index = next(iter(DataLoader(dataset, batch_size=5)))
    assert images.shape == (5, 3, 16, 16) and labels.shape == (5, 7) and index.tolist() == [0, 1, 2, 3, 4]
    assert len(list(dataset)) == 40  # indexing past the end raises IndexError


def test_stored_pixels(dataset: ImageDataset) -> None:
    first, last = dataset.pixels([0, -1])
    assert first.dtype == torch.uint8 and first.shape == (3, 20, 24)
    assert torch.equal(first, dataset.source.pixels[49]) and torch.equal(last, dataset.source.pixels[10])
    assert dataset.paths is None


def test_bad_arguments(dataset: ImageDataset) -> None:
    with pytest.raises(UserError, match="--augment must be one of crop-flip, crop, none, not 'flip'"):
        train_batches(dataset, [0], batch_size=1, key=(1,), augment="flip")
    with pytest.raises(UserError, match="--batch-size"):
        eval_batches(dataset, batch_size=0)
    with pytest.raises(IndexError):
        eval_batches(dataset, batch_size=1, indices=[40])
    assert list(train_batches(dataset, [], batch_size=4, key=(1,), augment="crop")) == []


def test_digits_from_end_to_end() -> None:
    split = load_data("digits", "nowhere", Options())
    images, labels, index = next(
        iter(train_batches(split.database, range(200), batch_size=64, key=(0,), augment="crop"))
    )
    assert images.shape == (64, 3, 64, 64) and torch.isfinite(images).all() and labels.sum() == 64
    assert torch.equal(labels, split.database.labels[index])
