"""The cache of decoded images: the same pixels as without it, rebuilt when stale, whole or not there at all."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import pickle
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import data.pixel_cache as pixel_cache
from data import Options, load_data
from data.data_loader import eval_batches, train_batches
from data.pixel_cache import VERSION, CachedPixels, StaleCache
from data.pixels import ImageFiles
from data.transform import AUGMENTATIONS, draw_windows
from data.windows import HEIGHT
from tests import image_trees as trees
from utils.errors import UserError
from utils.log import log
from utils.seeding import generator

OPTIONS = {"image_size": 32, "num_query": 3}
NAME = "folder-37.pixels"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for index in range(12):
        size = [(60, 45), (33, 80), (20, 25), (37, 37)][index % 4]  # larger, upright, smaller, just right
        trees.save_photo(tmp_path / "ab"[index % 2] / f"{index:02d}.jpg", index, *size)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that the cache decodes."""
    names: list[str] = []
    real = ImageFiles.decode

    def decode(files: ImageFiles, row: int) -> np.ndarray | str:
        names.append(Path(files.names[row]).name)
        return real(files, row)

    monkeypatch.setattr(ImageFiles, "decode", decode)
    return names


def batches(split) -> list[torch.Tensor]:
    train = train_batches(split.database, range(len(split.database)), batch_size=4, key=(1, 2), augment="crop-flip")
    return [images for images, _, _ in (*train, *eval_batches(split.query, batch_size=2))]


def test_the_same_bits_with_and_without(tree: Path) -> None:
    with_cache = batches(load_data("folder", tree, Options(**OPTIONS)))
    without = batches(load_data("folder", tree, Options(cache="off", **OPTIONS)))
    assert len(with_cache) == len(without) > 3
    assert all(torch.equal(one, two) for one, two in zip(with_cache, without, strict=True))


def test_a_crop_reads_only_its_own_rows(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_data("folder", tree, Options(**OPTIONS))
    source, rows = split.database.source, split.database.rows
    table = draw_windows(source.sizes[rows], 32, AUGMENTATIONS["crop-flip"], generator(1))
    out = np.empty((len(rows), 3, 32, 32), dtype=np.float32)
    read = []
    real = pixel_cache.os.preadv

    def preadv(file: int, targets: list[memoryview], offset: int) -> int:
        read.append(sum(map(len, targets)))
        return real(file, targets, offset)

    monkeypatch.setattr(pixel_cache.os, "preadv", preadv)
    source.fill(rows, table, out)
    assert read == (3 * table[:, HEIGHT] * source.sizes[rows, 1]).tolist()


def test_whole_images_and_their_sizes(tree: Path) -> None:
    split, plain = (load_data("folder", tree, Options(cache=cache, **OPTIONS)) for cache in ("on", "off"))
    assert np.array_equal(split.database.source.sizes, plain.database.source.sizes)
    for one, two in zip(split.database.pixels(range(9)), plain.database.pixels(range(9)), strict=True):
        assert torch.equal(one, two)
    assert sorted(map(tuple, set(map(tuple, split.database.source.sizes.tolist())))) == [
        *((25, 20), (37, 37), (37, 49), (80, 33))
    ]


def test_images_of_one_size_are_kept_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        trees.save_photo(tmp_path / "a" / f"{number}.png", number)
        trees.save_photo(tmp_path / "b" / f"{number}.png", 10 + number)
    source = load_data("folder", tmp_path, Options(image_size=32)).query.source
    assert isinstance(source, CachedPixels) and source.on(torch.device("cpu")) is None
    elsewhere = source.on(torch.device("meta"))  # a device without memory stands in for a GPU
    assert elsewhere is not None and elsewhere.shape == (12, 3, *source.sizes[0])
    assert source._in_memory is not None
    assert all(torch.equal(source._in_memory.image(row), source.image(row)) for row in range(12))
    monkeypatch.setattr(pixel_cache, "GPU_BYTES", elsewhere.numel() - 1)
    assert source.on(torch.device("meta")) is None, "too large"
    monkeypatch.undo()
    trees.save_photo(tmp_path / "b" / "other.png", 99, width=90)
    several = load_data("folder", tmp_path, Options(image_size=32)).query.source
    assert several.on(torch.device("meta")) is None, "two sizes"


def test_without_cache_nothing_is_written(tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    load_data("folder", tree, Options(cache="off", **OPTIONS))
    assert sorted(tree.rglob("*")) == before


def test_built_once_for_all_seeds(tree: Path, decoded: list[str]) -> None:
    load_data("folder", tree, Options(**OPTIONS))
    assert len(decoded) == 12 and (tree / NAME).is_file()
    load_data("folder", tree, Options(seed=5, **OPTIONS))
    assert len(decoded) == 12
    load_data("folder", tree, Options(**(OPTIONS | {"image_size": 28})))  # another size is another file
    assert len(decoded) == 24 and (tree / "folder-32.pixels").is_file()


def test_in_another_folder(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("fast disk") / "new"
    load_data("folder", tree, Options(cache=str(other), **OPTIONS))
    assert (other / NAME).is_file() and not (tree / NAME).exists()


def test_a_changed_image_alone_is_decoded_again(tree: Path, decoded: list[str]) -> None:
    load_data("folder", tree, Options(**OPTIONS))
    decoded.clear()
    trees.save_photo(tree / "a" / "00.jpg", 99)
    split = load_data("folder", tree, Options(**OPTIONS))
    assert decoded == ["00.jpg"]
    want = batches(load_data("folder", tree, Options(cache="off", **OPTIONS)))
    assert all(torch.equal(one, two) for one, two in zip(batches(split), want, strict=True))


def test_pixels_of_other_rules_are_not_used(tree: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of an older version, which kept the colour below transparent pixels."""
    load_data("folder", tree, Options(**OPTIONS))
    decoded.clear()
    monkeypatch.setattr(pixel_cache, "DECODING", pixel_cache.DECODING - 1)
    load_data("folder", tree, Options(**OPTIONS))
    assert len(decoded) == 12


def test_a_longer_list_and_a_touched_file(tree: Path, decoded: list[str]) -> None:
    load_data("folder", tree, Options(**OPTIONS))
    decoded.clear()
    trees.save_photo(tree / "a" / "new.png", 50)
    os.utime(tree / "b" / "01.jpg", (1, 1))
    load_data("folder", tree, Options(**OPTIONS))
    assert sorted(decoded) == ["01.jpg", "new.png"]


def test_what_the_disk_could_not_read_is_tried_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason that an image is bad may have been a passing one, which leaves no trace in the file's date."""
    real = ImageFiles.decode

    def fail(files: ImageFiles, row: int) -> np.ndarray | str:
        return "Input/output error" if files.names[row] == "b/05.jpg" else real(files, row)

    monkeypatch.setattr(ImageFiles, "decode", fail)
    for _ in range(2):
        assert len(load_data("folder", tree, Options(on_bad_image="skip", **OPTIONS)).database) == 8
    monkeypatch.setattr(ImageFiles, "decode", real)
    assert len(load_data("folder", tree, Options(**OPTIONS)).database) == 9


@pytest.mark.parametrize("damage", ["empty", "cut", "cut to header", "version", "version 2", "trailer", "not renamed"])
def test_a_damaged_cache_is_rebuilt(
    tree: Path, decoded: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(pixel_cache, "VERSION", VERSION - (damage == "version"))
        want = batches(load_data("folder", tree, Options(**OPTIONS)))
    path = tree / NAME
    content = bytearray(path.read_bytes())
    if damage == "version 2":  # another layout, with the description at the end
        content = b"SCHNPIX\2" + content[:-30] + bytes(30)
    elif damage == "trailer":
        content[-30] ^= 1
    elif damage not in ("version", "not renamed"):
        del content[{"empty": 0, "cut": -1, "cut to header": 16}[damage] :]
    if damage == "not renamed":  # killed before the end: only the part is there
        path.rename(path.with_name(f"{NAME}.part"))
    else:
        path.write_bytes(content)
        with pytest.raises(StaleCache):
            CachedPixels(path, ImageFiles(tree, [], 37))
    decoded.clear()
    assert all(
        torch.equal(one, two)
        for one, two in zip(batches(load_data("folder", tree, Options(**OPTIONS))), want, strict=True)
    )
    assert len(decoded) == 12 and not list(tree.glob("*.part"))


def test_no_damaged_or_missing_byte_behind_the_pixels_is_believed(tree: Path) -> None:
    """What describes the pixels is as it was written, or the file is refused."""
    trees.save_photo(tree / "a" / "bad.jpg", 1)
    (tree / "a" / "bad.jpg").write_bytes(b"not an image")
    source = load_data("folder", tree, Options(on_bad_image="skip", **OPTIONS)).query.source
    path = tree / NAME
    good = path.read_bytes()
    start = int(3 * source.sizes.astype(int).prod(1).sum())
    assert source.reasons and 0 < len(good) - start < 5000
    refused = 0
    for position in range(start, len(good), 5):
        for damaged in (good[:position] + bytes([good[position] ^ 17]) + good[position + 1 :], good[:position]):
            path.write_bytes(damaged)
            try:
                found = CachedPixels(path, source.files)
            except StaleCache:
                refused += 1
            else:
                for name in ("signatures", "sizes", "_offsets"):
                    assert np.array_equal(getattr(found, name), getattr(source, name))
                assert found.reasons == source.reasons
    assert refused > (len(good) - start) / 5


def test_an_interrupted_build_leaves_the_old_cache(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_data("folder", tree, Options(**OPTIONS))
    before = (tree / NAME).read_bytes()
    trees.save_photo(tree / "a" / "00.jpg", 99)

    def interrupt(*_: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFiles, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_data("folder", tree, Options(**OPTIONS))
    assert (tree / NAME).read_bytes() == before and not list(tree.glob("*.part"))


def _sums(root: str) -> list[float]:
    return [images.double().sum().item() for images in batches(load_data("folder", root, Options(**OPTIONS)))]


def test_two_processes_at_once(tree: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        one, other = executor.map(_sums, [str(tree)] * 2)
    assert one == other == _sums(str(tree))


def test_the_second_builder_waits_and_does_not_build(
    tree: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of three builders decodes nothing before both others have said that they wait."""
    decode = ImageFiles.decode
    others_wait = threading.Event()

    class Waiting(logging.Handler):
        count = 0

        def emit(self, record: logging.LogRecord) -> None:
            if "Another run is building" in record.getMessage():
                self.count += 1
                if self.count == 2:
                    others_wait.set()

    def decode_later(files: ImageFiles, row: int) -> np.ndarray | str:
        assert others_wait.wait(600)
        return decode(files, row)

    monkeypatch.setattr(ImageFiles, "decode", decode_later)
    handler = Waiting()
    log.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO), ThreadPoolExecutor(3) as executor:
            runs = [executor.submit(load_data, "folder", tree, Options(**OPTIONS)) for _ in range(3)]
            sums = [sum(images.double().sum().item() for images in batches(run.result())) for run in runs]
    finally:
        log.removeHandler(handler)
    assert len(decoded) == 12 and len(set(sums)) == 1 and not list(tree.glob("*.part"))


def test_a_file_system_without_locks(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="flock not supported"):
        load_data("folder", tree, Options(**OPTIONS))
    assert (tree / NAME).is_file() and not list(tree.glob("*.part"))
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with pytest.raises(UserError, match=r"No locks available\. Keep it in another folder with --cache DIR"):
        load_data("folder", tree, Options(**(OPTIONS | {"image_size": 28})))


def test_no_room_on_the_disk(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tree)
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"needs about 0\.0 GB in .* --cache off"):
        load_data("folder", tree, Options(**OPTIONS))


def test_the_disk_fills_up(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixel_cache.os, "fsync", fsync)
    with pytest.raises(UserError, match="cannot be read or written: the disk is full"):
        load_data("folder", tree, Options(**OPTIONS))
    assert not list(tree.glob("*.pixels")) and not list(tree.glob("*.part"))


def test_a_folder_that_cannot_be_written_to(tree: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read or written: Not a directory\..* --cache DIR"):
        load_data("folder", tree, Options(cache=str(tree / "a" / "00.jpg"), **OPTIONS))


def test_a_cache_cut_short_while_it_is_read(tree: Path) -> None:
    split = load_data("folder", tree, Options(**OPTIONS))
    with open(tree / NAME, "r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"folder-37\.pixels has been cut short"):
        batches(split)


def test_files_that_change_while_they_are_read(tree: Path) -> None:
    split = load_data("folder", tree, Options(cache="off", **OPTIONS))
    first = tree / split.query.paths[0]
    trees.save_photo(first, 1, 200, 41)
    with pytest.raises(UserError, match="has changed since the run began"):
        split.query[0]
    first.unlink()
    with pytest.raises(UserError, match="could be read when the run began, but not any more"):
        split.query[0]


def test_a_dataset_travels_to_another_process(tree: Path) -> None:
    split = load_data("folder", tree, Options(**OPTIONS))
    copy = pickle.loads(pickle.dumps(split.query))
    assert torch.equal(copy[1][0], split.query[1][0]) and copy.paths == split.query.paths
    memory = load_data("digits", tree, Options()).query
    assert torch.equal(pickle.loads(pickle.dumps(memory))[1][0], memory[1][0])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks the system for the process's memory")
def test_reading_does_not_fill_the_processs_memory(tmp_path: Path) -> None:
    """Reading every image of a cache many times the size of what one batch needs: memory stays where it was."""
    from PIL import Image

    for index in range(4):
        image = Image.fromarray(np.random.default_rng(index).integers(0, 256, (512, 512, 3), dtype=np.uint8))
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        image.save(tmp_path / "ab"[index % 2] / f"{index}.png")
    names = [f"{'ab'[index % 2]}/{index % 4}.png" for index in range(200)]  # 200 x 786 kB = 157 MB
    rows = np.eye(2, dtype=int)[np.arange(200) % 2]
    trees.write_lines(tmp_path / "database_img.txt", names)
    trees.write_rows(tmp_path / "database_label.txt", rows)
    trees.write_lines(tmp_path / "query_img.txt", names[:2])
    trees.write_rows(tmp_path / "query_label.txt", rows[:2])
    split = load_data("lists", tmp_path, Options(image_size=448))
    for _ in eval_batches(split.database, batch_size=2, indices=range(8)):
        pass
    before = resident_bytes()
    for _ in eval_batches(split.database, batch_size=2):
        pass
    assert (tmp_path / next(tmp_path.glob("*.pixels")).name).stat().st_size > 150e6
    assert resident_bytes() - before < 40e6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
