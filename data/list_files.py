"""Datasets by lists: image names, one per line, and label rows of 0 and 1; and what all datasets of files share.

Every error message names the file and, where there is one, the line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split, make_split
from data.image_files import open_images
from data.options import Options
from data.pixels import ImageFiles
from data.split import random_split, sample_rows
from data.transform import shorter_side_for
from utils.errors import UserError

_BOM = b"\xef\xbb\xbf"

# ---- Reading lists ----


def read_lines(path: Path) -> list[bytes]:
    """The lines of a text file, without line ends (LF or CRLF), surrounding blanks, and blank lines at the end.

    Raises:
        UserError: the file cannot be read, is empty, or has a blank line before its end.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = [line.strip() for line in content.removeprefix(_BOM).rstrip().split(b"\n")]
    if lines == [b""]:
        raise UserError(f"{path} is empty; it needs one line per image.")
    if b"" in lines:
        number = lines.index(b"") + 1
        raise UserError(f"{path}, line {number} is blank; remove it, since each line stands for one image.")
    return lines


def read_names(path: Path) -> list[str]:
    r"""The names in a list (UTF-8), with ``\`` turned into ``/``.

    Raises:
        UserError: see `read_lines`; or a line is not UTF-8 or has a character that no file name can have.
    """
    names = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            name = line.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number} is not UTF-8 text; save the list as UTF-8.") from None
        if "\0" in name:
            raise UserError(f"{path}, line {number} has a NUL character, which no file name can have; remove it.")
        names.append(name.replace("\\", "/"))
    return names


def read_labels(path: Path, widths: Collection[int] | None = None) -> torch.Tensor:
    """Multi-hot label rows, separated by blanks: float32 [n, C], with C one of `widths` (None: any C).

    Raises:
        UserError: see `read_lines`; or an entry is not 0 or 1, or the rows have different widths or a wrong one.
    """
    lines = read_lines(path)
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
    digits = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(lines), width)
    return torch.from_numpy((digits - ord("0")).astype(np.float32))


def read_pairs(
    pairs: Sequence[tuple[Path, Path]], widths: Collection[int] | None = None
) -> tuple[list[str], torch.Tensor, int]:
    """Pairs of an image list and its label rows, pooled: n names, float32 [n, C], number of images of the first pair.

    Raises:
        UserError: see `read_names` and `read_labels`; or files have different lengths, or label rows different widths.
    """
    names: list[str] = []
    labels: list[torch.Tensor] = []
    for names_path, labels_path in pairs:
        listed = read_names(names_path)
        labels.append(read_labels(labels_path, widths))
        count, width = labels[-1].shape
        if len(listed) != count:
            raise UserError(
                f"{names_path} has {len(listed)} images, {labels_path} has {count} label rows; "
                "row i must belong to line i of the image list."
            )
        if width != labels[0].shape[1]:
            raise UserError(
                f"{pairs[0][1]} has {labels[0].shape[1]} labels per row, {labels_path} has {width}; both need the same."
            )
        names += listed
    return names, torch.cat(labels), len(labels[0])


def read_class_names(path: Path, num_classes: int) -> list[str] | None:
    """The names of the label columns, one per line; None where there is no such file.

    Raises:
        UserError: see `read_names`; or the file has another number of names.
    """
    if not path.is_file():
        return None
    names = read_names(path)
    if len(names) != num_classes:
        raise UserError(f"{path} names {len(names)} classes, the labels have {num_classes} columns; correct the file.")
    return names


def with_prefix(name: str, folder: str) -> str:
    """`name` in `folder`, whether or not the list already says so: ``im1.jpg`` → ``mirflickr/im1.jpg``."""
    name = name.removeprefix("./")
    return name if name.startswith(f"{folder}/") else f"{folder}/{name}"


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
    rows: tuple[np.ndarray, np.ndarray],
    options: Options,
    class_names: list[str] | None,
    cache_name: str | None = None,
) -> Split:
    """`make_split` of the image files `names` in `folder`; the name of their cache starts with `cache_name` or `name`.

    Raises:
        UserError: see `open_images` and `make_split`.
    """
    image_size = options.image_size or 224
    files = ImageFiles(folder, names, shorter_side_for(image_size))
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
        names, labels, num_database = read_pairs(pairs, self.widths)
        if self.num_query is None or options.split == "lists":
            rows = split_by_lists(len(names), num_database, options, self.name)
        else:
            rows = random_split(len(names), options.num_query or self.num_query, options.seed, self.name)
        names = [with_prefix(name, self.images) for name in names]
        class_names = read_class_names(folder / self.class_names, labels.shape[1])
        return split_of_files(self.name, folder, names, labels, rows, options, class_names)
