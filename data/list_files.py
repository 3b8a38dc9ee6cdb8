"""Datasets by lists: image names, one per line, and their labels, in a file of their own or behind the names; and what
all datasets of files share.

Every error message names the file and, where there is one, the line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split, make_split
from data.image_files import open_images
from data.name_lists import read_lines, read_names, split_labels
from data.options import Options
from data.pixels import ImageFiles
from data.split import one_hot, random_split, sample_rows
from data.windows import shorter_side_for
from utils.errors import UserError
from utils.log import log

# ---- Reading lists ----


def read_labels(path: Path, widths: Collection[int] | None = None) -> torch.Tensor:
    """Multi-hot label rows, separated by blanks: float32 [n, C], with C one of `widths` (None: any C).

    Raises:
        UserError: see `read_lines`; or an entry is not 0 or 1, or the rows have different widths or a wrong one.
    """
    return torch.from_numpy(_multi_hot(path, read_lines(path), widths).astype(np.float32))


def _multi_hot(path: Path, lines: Sequence[bytes], widths: Collection[int] | None = None) -> np.ndarray:
    """uint8 [n, C] of 0 and 1 from the label rows `lines` of the file `path`. Raises as `read_labels`."""
    packed = []
    width = len(lines[0].split())
    for number, line in enumerate(lines, 1):
        entries = line.split()
        row = b"".join(entries)
        if len(row) != len(entries) or row.strip(b"01"):
            wrong = next(entry for entry in entries if entry not in (b"0", b"1"))
            shown = wrong[:20].decode("utf-8", "backslashreplace")
            raise UserError(f"{path}, line {number} has {shown!r}; a label row is 0 and 1 separated by blanks.")
        if len(row) != width:
            raise UserError(f"{path}, line {number} has {len(row)} labels, line 1 has {width}; all need the same.")
        packed.append(row)
    if widths is not None and width not in widths:
        allowed = " or ".join(map(str, sorted(widths)))
        raise UserError(f"{path}, line 1 has {width} labels; this dataset has {allowed}.")
    return np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(lines), width) - np.uint8(ord("0"))


def _class_numbers(path: Path, lines: Sequence[bytes]) -> np.ndarray:
    """int64 [n] from the lines of the file `path`, each of which is one class number. Raises a UserError otherwise."""
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(rb"[0-9]{1,18}", line):
            shown = line[:20].decode("utf-8", "backslashreplace")
            raise UserError(
                f"{path}, line {number} has {shown!r}, line 1 a single number; with one number per image, each is a "
                "class number: a whole number, 0 or more."
            )
    return np.array(lines, dtype=bytes).astype(np.int64)


def _read_part(
    names_path: Path, labels_path: Path | None, widths: Collection[int] | None
) -> tuple[list[str], np.ndarray]:
    """n names, and their labels: uint8 [n, C] of 0 and 1, or int64 [n] where there is one class number per image."""
    names = read_names(names_path)
    if labels_path is None:
        pairs = [split_labels(name) for name in names]
        names, lines = [name for name, _ in pairs], [text.encode() for _, text in pairs]
        if b"" in lines:
            raise UserError(
                f"{names_path}, line {lines.index(b'') + 1} has no labels behind the name; add them, as 0 and 1 or as "
                "a class number, or name a file of label rows."
            )
    else:
        lines = read_lines(labels_path)
        if len(names) != len(lines):
            raise UserError(
                f"{names_path} has {len(names)} images, {labels_path} has {len(lines)} label rows; "
                "row i must belong to line i of the image list."
            )
    path = labels_path or names_path
    if widths is None and len(lines[0].split()) == 1:
        return names, _class_numbers(path, lines)
    return names, _multi_hot(path, lines, widths)


def read_pairs(
    pairs: Sequence[tuple[Path, Path | None]], widths: Collection[int] | None = None
) -> tuple[list[list[str]], torch.Tensor, list[int] | None]:
    """Image lists and their labels, which are in a file of their own, or behind the names where that is None.

    Where `widths` is None and each image has a single number, that is its class number, as in HashNet's lists
    (https://github.com/thuml/HashNet/blob/master/pytorch/src/data_list.py).

    Returns:
        The names of each list; the labels of all, float32 multi-hot [n, C]; the class numbers of the columns, ascending
        and only those that occur, or None where the labels are multi-hot.

    Raises:
        UserError: see `read_names` and `read_labels`; or files have different lengths, or label rows different widths.
    """
    names: list[list[str]] = []
    labels: list[np.ndarray] = []
    for names_path, labels_path in pairs:
        listed, rows = _read_part(names_path, labels_path, widths)
        names.append(listed)
        labels.append(rows)
        first, own = (1 if part.ndim == 1 else part.shape[1] for part in (labels[0], rows))
        if first != own:
            raise UserError(
                f"{pairs[0][1] or pairs[0][0]} has {first} labels per row, {labels_path or names_path} has {own}; "
                "both need the same."
            )
    pooled = np.concatenate(labels)
    if pooled.ndim == 2:
        return names, torch.from_numpy(pooled.astype(np.float32)), None
    numbers, targets = np.unique(pooled, return_inverse=True)
    log.info("%s: one number per image is its class number; %d classes", pairs[0][1] or pairs[0][0], len(numbers))
    return names, one_hot(targets, len(numbers)), numbers.tolist()


def read_class_names(path: Path, num_classes: int, numbers: list[int] | None = None) -> list[str] | None:
    """The names of the label columns, one per line; None where there is no such file.

    Where the columns have the class `numbers`, line i + 1 names class i, and without a file the number is the name.

    Raises:
        UserError: see `read_names`; or the file has another number of names.
    """
    if not path.is_file():
        return None if numbers is None else list(map(str, numbers))
    names = read_names(path)
    if numbers is not None:
        if numbers[-1] >= len(names):
            raise UserError(f"{path} names classes 0 to {len(names) - 1}, but class {numbers[-1]} occurs; correct it.")
        return [names[number] for number in numbers]
    if len(names) != num_classes:
        raise UserError(f"{path} names {len(names)} classes, the labels have {num_classes} columns; correct the file.")
    return names


def with_prefix(name: str, folder: str) -> str:
    """`name` in `folder`, whether or not the list already says so: ``im1.jpg`` → ``mirflickr/im1.jpg``."""
    name = name.removeprefix("./")
    return name if name.startswith(f"{folder}/") else f"{folder}/{name}"


def relocated(root: Path, names: Sequence[str]) -> list[str]:
    """`names` without the leading folders that are not there, as of a list that was made on another machine.

    ``/home/me/coco/val2014/a.jpg`` → ``val2014/a.jpg``, if `root` has the folder ``val2014`` but there is no
    ``/home/me/coco/val2014``. A name whose folder is nowhere stays as it is.
    """
    folders: dict[str, str] = {}
    found = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in folders:
            folders[folder] = _folder_below(root, folder, file)
        found.append("/".join(filter(None, [folders[folder], file])))
    moved = [folder for folder, new in folders.items() if folder != new]
    if moved:
        others = f", and {len(moved) - 1} more folders of the lists in the same way" if moved[1:] else ""
        log.info("images of %s are looked for in %s%s", moved[0], root / folders[moved[0]], others)
    return found


def _folder_below(root: Path, folder: str, file: str) -> str:
    parts = folder.split("/") if folder else []
    for start in range(len(parts)):
        shorter = "/".join(parts[start:])
        if (root / shorter).is_dir():
            return shorter
    return "" if (root / file).exists() else folder


# ---- From lists to a split ----


def find_folder(root: Path, names: Sequence[str], marker: str, dataset: str) -> Path:
    """The folder that contains the file or folder `marker`: ``root/<one of names>`` or `root` itself.

    Raises:
        UserError: there is none; the message names the `dataset`.
    """
    for folder in [*(root / name for name in names), root]:
        if (folder / marker).exists():
            return folder
    raise UserError(
        f"{dataset} is not in {root}: {root / names[0] / marker} does not exist; name its folder with --root. "
        "docs/datasets.md says where to get it and how to lay it out."
    )


def require_files(paths: Sequence[Path], remedy: str) -> None:
    """Raise a UserError with the `remedy` that names the first file that does not exist, if any."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing; {remedy}")


def split_by_lists(count: int, num_database: int, options: Options, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Query and database rows: of `count` pooled images the first `num_database`, and of the others --num-query or all.

    Raises:
        UserError: the query list has fewer images than --num-query.
    """
    in_list = count - num_database
    if (options.num_query or 0) > in_list:
        raise UserError(
            f"--num-query {options.num_query}: the query list of {dataset} has only {in_list} images; "
            "give that many or fewer."
        )
    query = sample_rows(in_list, options.num_query or in_list, options.seed)
    return num_database + query, np.arange(num_database)


def split_of_files(
    name: str,
    folder: Path,
    names: Sequence[str],
    labels: torch.Tensor,
    rows: tuple[np.ndarray, ...],
    options: Options,
    class_names: list[str] | None,
    cache_name: str | None = None,
) -> Split:
    """`make_split` of the image files `names` in `folder`; the name of their cache starts with `cache_name` or `name`.

    Raises:
        UserError: see `open_images` and `make_split`.
    """
    image_size = options.image_size or 224
    files = ImageFiles(folder, names, shorter_side_for(image_size), options.max_pixels)
    source = open_images(files, cache_name or name, options)
    return make_split(name, source, labels, rows, class_names, image_size)


@dataclass(frozen=True)
class ListedDataset:
    """A dataset of several labels per image that its users share as lists.

    Attributes:
        folders: names of its folder; the first goes into messages.
        images: the folder of the images in it; names in the lists may start with it or not.
        lists: pairs of an image list and its label list; the first is the database list, the second the query list.
        widths: allowed numbers of labels.
        num_query: this many images of all lists, drawn by the seed, are the queries; None: the query list.
        class_names: the file that names the label columns.
        command: makes the lists from the official release.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    images: str
    lists: tuple[tuple[str, str], ...]
    widths: frozenset[int]
    num_query: int | None
    class_names: str
    command: str

    def load(self, root: Path, options: Options) -> Split:
        """Read the lists and open the images.

        Raises:
            UserError: lists or images are missing or do not match.
        """
        folder = find_folder(root, self.folders, self.lists[0][0], self.title)
        pairs = [(folder / images, folder / labels) for images, labels in self.lists]
        remedy = f"get the lists, or make them with python -m dataset.{self.command} (docs/datasets.md)."
        require_files([path for pair in pairs for path in pair], remedy)
        parts, labels, _ = read_pairs(pairs, self.widths)
        names = [name for part in parts for name in part]
        if self.num_query is None or options.split == "lists":
            rows = split_by_lists(len(names), len(parts[0]), options, self.name)
        else:
            rows = random_split(len(names), options.num_query or self.num_query, options.seed, self.name)
        names = [with_prefix(name, self.images) for name in names]
        class_names = read_class_names(folder / self.class_names, labels.shape[1])
        return split_of_files(self.name, folder, names, labels, rows, options, class_names)
