"""Datasets by lists: image names and label rows in text files, and what these datasets share.

An image list has one name per line, a label list one row of 0 and 1 per line. Every error message names the file and,
where there is one, the line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch

from data.image_dataset import Split, make_split
from data.image_files import open_images
from data.options import Options
from data.split import sample_rows
from data.transform import shorter_side_for
from utils.errors import UserError

IMAGE_SIZE = 224
_BOM = b"\xef\xbb\xbf"

# ---- Reading lists ----


def read_lines(path: Path) -> list[bytes]:
    """The lines of a text file, without line ends and surrounding blanks; blank lines at the end are dropped.

    Lines end with LF or CRLF.

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
    for number, line in enumerate(lines, 1):
        if not line:
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
    """Multi-hot label rows: float32 [n, C].

    Args:
        path: a text file with one row of 0 and 1, separated by blanks, per line.
        widths: the allowed C; None: any.

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


def read_pair(
    names_path: Path, labels_path: Path, widths: Collection[int] | None = None
) -> tuple[list[str], torch.Tensor]:
    """A list of images and their label rows: n names, float32 [n, C].

    Raises:
        UserError: see `read_names` and `read_labels`; or the two files have different lengths.
    """
    names, labels = read_names(names_path), read_labels(labels_path, widths)
    if len(names) != len(labels):
        raise UserError(
            f"{names_path} has {len(names)} images, {labels_path} has {len(labels)} label rows; "
            "row i must belong to line i of the image list."
        )
    return names, labels


def read_two_pairs(
    database: tuple[Path, Path], query: tuple[Path, Path], widths: Collection[int] | None = None
) -> tuple[list[str], torch.Tensor, int]:
    """The database list followed by the query list: n names, float32 [n, C], number of database images.

    Raises:
        UserError: see `read_pair`; or the label rows of the two lists have different widths.
    """
    database_names, database_labels = read_pair(*database, widths)
    query_names, query_labels = read_pair(*query, widths)
    if database_labels.shape[1] != query_labels.shape[1]:
        raise UserError(
            f"{database[1]} has {database_labels.shape[1]} labels per row, {query[1]} has {query_labels.shape[1]}; "
            "both need the same."
        )
    return database_names + query_names, torch.cat([database_labels, query_labels]), len(database_names)


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


def require_files(folder: Path, names: Sequence[str], remedy: str) -> None:
    """Check that the files `names` exist in `folder`.

    Raises:
        UserError: the message names the first missing file and gives the `remedy`.
    """
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {remedy}")


def given_query(count: int, options: Options, dataset: str) -> np.ndarray:
    """The used rows of a query list of `count` images: all, or --num-query of them drawn by the seed; ascending.

    Raises:
        UserError: the list has fewer images than --num-query.
    """
    if options.num_query is None:
        return np.arange(count)
    if options.num_query > count:
        raise UserError(
            f"--num-query {options.num_query}: the query list of {dataset} has only {count} images; "
            "give that many or fewer."
        )
    return sample_rows(count, options.num_query, options.seed)


def split_of_files(
    name: str,
    folder: Path,
    names: Sequence[str],
    labels: torch.Tensor,
    query: np.ndarray,
    database: np.ndarray,
    options: Options,
    *,
    class_names: list[str] | None,
    multi_label: bool,
    cache_name: str | None = None,
) -> Split:
    """Open the images (`image_files.open_images`) and split them.

    Args:
        name: the name of the dataset.
        folder: the folder that the image names start from.
        names: n image names.
        labels: float32 multi-hot [n, C].
        query, database: rows of `names`, int64.
        options: those of `load_data`.
        class_names: names of the C label columns, or None.
        multi_label: whether an image may have several labels.
        cache_name: start of the name of the cache file; None: `name`.

    Raises:
        UserError: see `open_images`; or no image of a half can be read.
    """
    image_size = options.image_size or IMAGE_SIZE
    source = open_images(folder, names, cache_name or name, shorter_side_for(image_size), options)
    return make_split(
        name,
        source,
        labels,
        query,
        database,
        image_size=image_size,
        class_names=class_names,
        multi_label=multi_label,
    )
