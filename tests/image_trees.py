"""Small datasets in the formats of their authors, made by the tests that read them."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import ImageDataset, Split


def photo(seed: int, width: int = 60, height: int = 45) -> Image.Image:
    """A smooth RGB picture, another for each seed."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def save_photo(path: Path, seed: int, width: int = 60, height: int = 45) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(seed, width, height).save(path, quality=95)


def ids(split: Split) -> set[str]:
    """The names of all images."""
    return {*split.query.paths, *split.database.paths}


def shows(dataset: ImageDataset, row: int, seed: int) -> bool:
    """Whether the dataset's row holds the picture that the tree made from `seed`."""
    got = dataset.pixels([row])[0].permute(1, 2, 0).float()
    side = got.shape[0]
    want = photo(seed).resize((int(side * 60 / 45), side), Image.Resampling.BILINEAR)
    return (got - torch.from_numpy(np.asarray(want).copy())).abs().mean().item() < 6


def label_rows(count: int, width: int, seed: int = 0, empty: int = 0) -> np.ndarray:
    """uint8 [count, width] of 0 and 1, at least one label a row, except the last `empty` rows, which have none."""
    random = np.random.default_rng(seed)
    rows = (random.random((count, width)) < 0.15).astype(np.uint8)
    rows[np.arange(count), np.arange(count) % width] = 1
    if empty:
        rows[-empty:] = 0
    return rows


def write_lines(path: Path, lines: list[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def write_rows(path: Path, rows: np.ndarray, end: str = "\n", blank: str = " ") -> None:
    write_lines(path, [blank.join(map(str, row)) for row in rows.tolist()], end)


CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10_tree(root: Path, per_batch: int = 40, protocol: int = 2) -> np.ndarray:
    """``cifar-10-batches-py`` with six batches of `per_batch` images; returns all pixels, uint8 [n, 3, 32, 32].

    The sums of these files are not the official ones: see `trust_cifar10`.
    """
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(10)
    pixels = []
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = random.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        batch = {
            "batch_label": name,
            "labels": [index % 10 for index in range(per_batch)],
            "data": data,
            "filenames": ["x.png"] * per_batch,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
        pixels.append(data.reshape(-1, 3, 32, 32))
    meta = {"num_cases_per_batch": per_batch, "label_names": CIFAR10_CLASSES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    return np.concatenate(pixels)


def trust_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files of ``root/cifar-10-batches-py`` for the official ones."""
    from torchvision.datasets import CIFAR10  # slow, and most tests need none

    def md5(name: str) -> str:
        return hashlib.md5((root / "cifar-10-batches-py" / name).read_bytes()).hexdigest()

    for files in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, files, [[name, md5(name)] for name, _ in getattr(CIFAR10, files)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5("batches.meta")})


def nus_wide_tc21_tree(
    root: Path, database: int = 30, query: int = 6, *, prefix: str = "images/", slash: str = "/", end: str = "\n"
) -> None:
    folder = root / "NUS-WIDE"
    for stem, count, start in (("database", database, 0), ("test", query, database)):
        names = [f"actor/{start + index:04d}_2124494179.jpg" for index in range(count)]
        for index, name in enumerate(names):
            save_photo(folder / "images" / name, start + index)
        write_lines(folder / f"{stem}_img.txt", [(prefix + name).replace("/", slash) for name in names], end)
        write_rows(folder / f"{stem}_label_onehot.txt", label_rows(count, 21, start), end)


def nus_wide_tc10_tree(root: Path, count: int = 30, *, prefix: str = "") -> None:
    folder = root / "NUS-WIDE"
    names = [f"{index:04d}_99.jpg" for index in range(count)]
    for index, name in enumerate(names):
        save_photo(folder / "images" / name, index)
    write_lines(folder / "img_tc10.txt", [prefix + name for name in names])
    write_rows(folder / "targets_onehot_tc10.txt", label_rows(count, 10))


def flickr_tree(
    root: Path, database: int = 24, query: int = 6, *, width: int = 38, prefix: str = "mirflickr/", end: str = "\n"
) -> None:
    folder = root / "Flickr"
    rows = label_rows(database + query, width, empty=1)
    for number in range(database + query):
        save_photo(folder / "mirflickr" / f"im{number + 1}.jpg", number)
    names = [f"{prefix}im{number + 1}.jpg" for number in range(database + query)]
    write_lines(folder / "db_image.txt", names[:database], end)
    write_lines(folder / "test_image_m.txt", names[database:], end)
    write_rows(folder / "database_label.txt", rows[:database], end, blank="  ")
    write_rows(folder / "test_label.txt", rows[database:], end)


def imagenet_tree(root: Path, train: int = 8, val: int = 3) -> list[str]:
    """``train/`` and ``val/`` of three classes below root; returns the classes."""
    classes = ["n01440764", "n01443537", "n02102040"]
    for label, name in enumerate(classes):
        for index in range(train):
            save_photo(root / "train" / name / f"{name}_{index}.JPEG", 100 * label + index)
        for index in range(val):
            save_photo(root / "val" / name / f"ILSVRC2012_val_{index:08d}.JPEG", 1000 + 100 * label + index)
    return classes


def folder_tree(root: Path, per_class: int = 10) -> list[str]:
    """Class folders with a space and with non-ASCII letters, images of several kinds; returns the classes."""
    classes = ["Äpfel", "große Hunde", "日本"]
    kinds = ["jpg", "png", "bmp", "gif", "webp", "tiff"]
    for label, name in enumerate(classes):
        for index in range(per_class):
            save_photo(root / name / f"Bild {index:02d}.{kinds[index % len(kinds)]}", 100 * label + index)
    return sorted(classes)


def lists_tree(root: Path, database: int = 24, query: int = 6, width: int = 5) -> None:
    rows = label_rows(database + query, width)
    names = [f"my images/{index}.png" for index in range(database + query)]
    for index, name in enumerate(names):
        save_photo(root / name, index)
    write_lines(root / "database_img.txt", names[:database])
    write_rows(root / "database_label.txt", rows[:database])
    write_lines(root / "query_img.txt", names[database:])
    write_rows(root / "query_label.txt", rows[database:])


FLICKR_CONCEPTS = [
    *("animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male"),
    *("night", "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport"),
    *("tree", "water"),
]
FLICKR_STRICT = [
    *("baby", "bird", "car", "clouds", "dog", "female", "flower", "male", "night", "people", "portrait", "river"),
    *("sea", "tree"),
]


def flickr_release(folder: Path, count: int = 40, empty: int = 3) -> tuple[list[Path], dict[str, set[int]]]:
    """The two official archives with `count` images, the last `empty` of them in no concept.

    Returns the archives and the image numbers of each annotation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(25)
    members: dict[str, set[int]] = {}
    for number, concept in enumerate(FLICKR_CONCEPTS):
        chosen = {n for n in range(1, count - empty + 1) if n % len(FLICKR_CONCEPTS) == number or random.random() < 0.1}
        members[concept] = chosen
        if concept in FLICKR_STRICT:
            members[f"{concept}_r1"] = {n for n in sorted(chosen) if random.random() < 0.5}
    images, annotations = folder / "mirflickr25k.zip", folder / "mirflickr25k_annotations_v080.zip"
    with zipfile.ZipFile(images, "w") as archive:
        archive.writestr("mirflickr/doc/README.txt", "about the images")
        for number in range(1, count + 1):
            path = folder / "one.jpg"
            save_photo(path, number)
            archive.write(path, f"mirflickr/im{number}.jpg")
            path.unlink()
    with zipfile.ZipFile(annotations, "w") as archive:
        archive.writestr("README.txt", "about the annotations")
        for name, numbers in members.items():
            archive.writestr(f"{name}.txt", "".join(f"{number}\r\n" for number in sorted(numbers)))
    return [images, annotations], members


def nus_wide_release(folder: Path, count: int = 60, concepts: int = 25) -> tuple[list[str], np.ndarray]:
    """The official ground truth and image list with images below ``images/``; concept j is rarer than j - 1.

    Returns the names in the list's order, with slashes, and the labels, uint8 [count, concepts].
    """
    random = np.random.default_rng(81)
    labels = (random.random((count, concepts)) < np.linspace(0.5, 0.02, concepts)).astype(np.uint8)
    labels[-2:] = 0
    names = [f"actor/{index:04d}_2124494179.jpg" for index in range(count)]
    write_lines(folder / "ImageList" / "Imagelist.txt", [name.replace("/", "\\") for name in names], "\r\n")
    for concept in range(concepts):
        path = folder / "Groundtruth" / "AllLabels" / f"Labels_concept{concept:02d}.txt"
        write_lines(path, [str(value) for value in labels[:, concept].tolist()])
    for index, name in enumerate(names):
        save_photo(folder / "images" / name, index)
    return names, labels
