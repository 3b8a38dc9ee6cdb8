"""CIFAR-10: protocol, and files that are not the official ones, of which nothing is unpickled."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets.cifar

from data import Options, load_data
from tests.image_trees import CIFAR10_CLASSES, cifar10_tree, trust_cifar10
from utils.errors import UserError

FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pooled_in_order_for_every_pickle_protocol(
    tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = cifar10_tree(tmp_path, protocol=protocol)
    trust_cifar10(tmp_path, monkeypatch)
    split = load_data("cifar-10", tmp_path, Options(num_query=20))
    assert np.array_equal(split.database.source.pixels.numpy(), pixels)
    assert (len(split.query), len(split.database), split.num_classes, split.multi_label) == (20, 220, 10, False)
    assert split.class_names == CIFAR10_CLASSES
    targets = split.database.labels.argmax(1).numpy()
    assert (targets == split.database.rows % 40 % 10).all() and (split.database.labels.sum(1) == 1).all()
    assert split.query[0][0].shape == (3, 224, 224)


def test_a_python_2_pickle_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opcodes of the published files: protocol 2 by Python 2, numpy.core, byte strings as str."""
    cifar10_tree(tmp_path)
    data = np.arange(2 * 3072).astype(np.uint8)
    stream = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05(K\x06K\x09e"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\x09U\x01bq\x0a"
        b"\x87Rq\x0b(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0cU\x02u1q\x0dK\x00K\x01\x87Rq\x0e(K\x03U\x01|q\x0fNNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + len(data).to_bytes(4, "little") + data.tobytes() + b"tbu."
    )
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(stream)
    trust_cifar10(tmp_path, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = load_data("cifar-10", tmp_path, Options(num_query=10))
    source = split.database.source
    assert np.array_equal(source.pixels[:2].reshape(-1).numpy(), data)
    rows = np.concatenate([split.query.rows, split.database.rows])
    labels = torch.cat([split.query.labels, split.database.labels])[rows.argsort()]
    assert labels[:4].argmax(1).tolist() == [6, 9, 0, 1]


def test_the_protocol_and_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10_tree(tmp_path, per_batch=40)
    trust_cifar10(tmp_path, monkeypatch)
    one, again, other = (load_data("cifar-10", tmp_path, Options(num_query=50, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.query.rows, again.query.rows) and not np.array_equal(one.query.rows, other.query.rows)
    assert one.query.labels.sum(0).tolist() == [5] * 10
    assert sorted([*one.query.rows, *one.database.rows]) == list(range(240))
    smaller = load_data("cifar-10", tmp_path, Options(num_query=50, seed=1, image_size=32))
    assert np.array_equal(one.query.rows, smaller.query.rows)  # no other option moves the split
    with pytest.raises(UserError, match="--num-query 15 is not a multiple of the 10 classes"):
        load_data("cifar-10", tmp_path, Options(num_query=15))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", FILES)
def test_no_other_file_is_unpickled(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in turn is a malicious one among trusted ones; and all are, with the official sums."""
    monkeypatch.chdir(tmp_path)
    cifar10_tree(tmp_path)
    with monkeypatch.context() as trusting:
        trust_cifar10(tmp_path, trusting)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(UserError, match=f"{name} is not the official file; delete the folder .* and run again"):
            load_data("cifar-10", tmp_path, Options())
    for file in FILES:
        (tmp_path / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"data_batch_1 is not the official file; delete the folder .* and run again"):
        load_data("cifar-10", tmp_path, Options())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", FILES)
def test_damaged_and_missing_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10_tree(tmp_path)
    trust_cifar10(tmp_path, monkeypatch)
    unpickled = []
    monkeypatch.setattr(torchvision.datasets.cifar.pickle, "load", lambda *_, **__: unpickled.append(1))
    path = tmp_path / "cifar-10-batches-py" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{name} is not the official file; delete the folder .*cifar-10-batches-py"):
        load_data("cifar-10", tmp_path, Options())
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing; delete the folder .*cifar-10-batches-py and run again"):
        load_data("cifar-10", tmp_path, Options())
    assert not unpickled


def test_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"could not be downloaded \(no network\); download https://.*tar\.gz on "):
        load_data("cifar-10", tmp_path / "new", Options())


def test_download_is_verified_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        asked.update(url=url, md5=md5)
        cifar10_tree(Path(root))

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fetch)
    cifar10_tree(tmp_path / "same")
    trust_cifar10(tmp_path / "same", monkeypatch)
    assert len(load_data("cifar-10", tmp_path / "new", Options(num_query=10)).query) == 10
    assert asked["md5"] == "c58f30108f718f92721af3b95e74349a" and asked["url"].endswith("cifar-10-python.tar.gz")


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_download_is_not_unpickled(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cifar10_tree(tmp_path / "same")
    trust_cifar10(tmp_path / "same", monkeypatch)

    def fetch(url: str, root: str, **_: object) -> None:
        shutil.copytree(tmp_path / "same", root, dirs_exist_ok=True)
        (Path(root) / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Evil()))

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", fetch)
    with pytest.raises(UserError, match="could not be downloaded"):
        load_data("cifar-10", tmp_path / "new", Options(num_query=10))
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10_tree(tmp_path)

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", fail)
    with pytest.raises(UserError, match=r"cifar-10-batches-py cannot be read .*Permission denied"):
        load_data("cifar-10", tmp_path, Options())


def test_the_official_division(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10_tree(tmp_path)
    trust_cifar10(tmp_path, monkeypatch)
    split = load_data("cifar-10", tmp_path, Options(protocol="test-10000"))
    assert split.database.rows.tolist() == list(range(200)) and split.query.rows.tolist() == list(range(200, 240))
    assert split.train is split.database
    with pytest.raises(UserError, match="--num-query: with --protocol test-10000 the test images are the queries"):
        load_data("cifar-10", tmp_path, Options(protocol="test-10000", num_query=20))
