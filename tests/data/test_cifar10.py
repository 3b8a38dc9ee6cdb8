"""CIFAR-10 from its pickles, and digits: protocols, and files that are not what they should be."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import Options, load_data
from data.cifar10 import read_batch, read_plain_pickle
from tests.image_trees import cifar10_tree
from utils.errors import UserError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pooled_in_order_for_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    pixels = cifar10_tree(tmp_path, protocol=protocol)
    split = load_data("cifar-10", tmp_path, Options(num_query=20))
    assert np.array_equal(split.database.source.pixels.numpy(), pixels)
    assert (len(split.query), len(split.database), split.num_classes, split.multi_label) == (20, 220, 10, False)
    assert split.class_names[0] == "airplane" and split.class_names[9] == "truck"
    targets = split.database.labels.argmax(1).numpy()
    assert (targets == split.database.rows % 40 % 10).all() and (split.database.labels.sum(1) == 1).all()
    assert split.query[0][0].shape == (3, 224, 224)


def test_a_python_2_pickle_as_published(tmp_path: Path) -> None:
    """Opcodes of the published files: protocol 2 by Python 2, numpy.core, byte strings as str."""
    data = np.arange(2 * 3072).astype(np.uint8)
    stream = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(K\x06K\x09e"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09U\x01bq\x0a"
        b"\x87Rq\x0b(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0cU\x02u1q\x0dK\x00K\x01\x87Rq\x0e(K\x03U\x01|q\x0fNNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(data).to_bytes(4, "little") + data.tobytes() + b"tbu."
    )
    (tmp_path / "data_batch_1").write_bytes(stream)
    pixels, targets = read_batch(tmp_path / "data_batch_1")
    assert np.array_equal(pixels.reshape(-1), data) and targets.tolist() == [6, 9]


def test_the_protocol_and_the_seed(tmp_path: Path) -> None:
    cifar10_tree(tmp_path, per_batch=40)
    one, again, other = (load_data("cifar-10", tmp_path, Options(num_query=50, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.query.rows, again.query.rows) and not np.array_equal(one.query.rows, other.query.rows)
    assert one.query.labels.sum(0).tolist() == [5] * 10
    assert sorted([*one.query.rows, *one.database.rows]) == list(range(240))
    smaller = load_data("cifar-10", tmp_path, Options(num_query=50, seed=1, image_size=32))
    assert np.array_equal(one.query.rows, smaller.query.rows)  # no other option moves the split


def test_it_says_that_it_is_not_the_official_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cifar10_tree(tmp_path)
    load_data("cifar-10", tmp_path, Options(num_query=10))
    assert "not the official CIFAR-10" in caplog.text


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_runs_code(tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": [1]}, protocol=protocol))
    with pytest.raises(UserError, match=r"batch is damaged or is no CIFAR-10 file \(it asks for (posix|nt)\.mkdir\)"):
        read_batch(tmp_path / "batch")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1, 10]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1, -1]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1, True]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [1]},
        {"data": np.zeros((0, 3072), dtype=np.uint8), "labels": []},
        {"data": np.zeros((2, 3000), dtype=np.uint8), "labels": [1, 2]},
        {"data": np.zeros(6144, dtype=np.uint8), "labels": [1, 2]},
        {"data": np.zeros((2, 3072), dtype=np.float32), "labels": [1, 2]},
        {"data": [[0] * 3072] * 2, "labels": [1, 2]},
        {"labels": [1, 2]},
        {"data": np.zeros((2, 3072), dtype=np.uint8)},
        [1, 2],
        "text",
    ],
)
def test_pickles_that_are_no_batch(tmp_path: Path, content: object) -> None:
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="data_batch_3"):
        read_batch(tmp_path / "data_batch_3")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    cifar10_tree(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="data_batch_4 is damaged"):
        load_data("cifar-10", tmp_path, Options())
    path.unlink()
    with pytest.raises(UserError, match="data_batch_4 is missing"):
        load_data("cifar-10", tmp_path, Options())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, 900), st.integers(0, 255))))
def test_any_bytes_as_a_pickle(tmp_path: Path, damage: bytes | tuple[int, int]) -> None:
    """Any bytes, and a good file with one byte changed: read, or a UserError; nothing else."""
    if isinstance(damage, tuple):
        content = bytearray(pickle.dumps({"data": np.zeros((1, 3072), dtype=np.uint8), "labels": [1]}, protocol=2))
        content[damage[0] % len(content)] = damage[1]
        damage = bytes(content)
    (tmp_path / "batch").write_bytes(damage)
    try:
        pixels, targets = read_batch(tmp_path / "batch")
    except UserError as error:
        assert "batch" in str(error)
    else:
        assert pixels.shape == (len(targets), 3, 32, 32)


def test_plain_pickles_may_hold_bytes_in_protocol_2(tmp_path: Path) -> None:
    (tmp_path / "meta").write_bytes(pickle.dumps({"label_names": [b"caf\xe9", b""]}, protocol=2))
    assert read_plain_pickle(tmp_path / "meta") == {"label_names": [b"caf\xe9", b""]}


def test_a_damaged_number_asks_for_no_gigabytes(tmp_path: Path) -> None:
    (tmp_path / "batch").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(UserError, match="beyond its own length"):
        read_batch(tmp_path / "batch")


def test_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils as utils

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(utils, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\): get cifar-10-python.tar.gz from"):
        load_data("cifar-10", tmp_path / "new", Options())


def test_download_is_verified_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets.utils as utils

    asked = {}

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        asked.update(url=url, md5=md5)
        cifar10_tree(Path(root))

    monkeypatch.setattr(utils, "download_and_extract_archive", fetch)
    assert len(load_data("cifar-10", tmp_path / "new", Options(num_query=10)).query) == 10
    assert asked["md5"] == "c58f30108f718f92721af3b95e74349a" and asked["url"].endswith("cifar-10-python.tar.gz")


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
