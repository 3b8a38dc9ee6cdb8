"""Reading lists: image names one a line, label rows of 0 and 1. Every complaint names the file and the line."""

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

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> list[bytes]:
    """The lines of a text file without line ends and blanks around them; blank lines at the end are dropped.

    Lines end with LF or CRLF. Raises UserError where the file cannot be read, is empty, or has a blank line inside.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = [line.strip() for line in content.removeprefix(_BOM).rstrip().split(b"\n")]
    if lines == [b""]:
        raise UserError(f"{path} is empty: it needs one line an image.")
    for number, line in enumerate(lines, 1):
        if not line:
            raise UserError(f"{path}, line {number} is blank: take it out, each line stands for one image.")
    return lines


def read_names(path: Path) -> list[str]:
    """The names in a list (UTF-8), back-slashes turned into slashes.

    Raises:
        UserError: see `read_lines`; a line that is not UTF-8 or holds a character no file name can have.
    """
    names = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            name = line.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number} is not UTF-8 text: save the list as UTF-8.") from None
        if "\0" in name:
            raise UserError(f"{path}, line {number} holds a NUL character, which no file name can have.")
        names.append(name.replace("\\", "/"))
    return names


def read_labels(path: Path, widths: Collection[int] | None = None) -> torch.Tensor:
    """Multi-hot label rows: float32 [n, C].

    Args:
        path: a text file of 0 and 1 separated by blanks, a row a line.
        widths: the allowed C; None: any.

    Raises:
        UserError: see `read_lines`; an entry that is not 0 or 1, rows of different widths, a width not allowed.
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
            raise UserError(f"{path}, line {number} holds {shown!r}: a label row is 0 and 1 separated by blanks.")
        if len(row) != width:
            raise UserError(f"{path}, line {number} has {len(row)} labels, line 1 has {width}: all need the same.")
        packed.append(row)
    if widths is not None and width not in widths:
        allowed = " or ".join(map(str, sorted(widths)))
        raise UserError(f"{path}, line 1 has {width} labels; this dataset has {allowed}.")
    digits = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(lines), width)
    return torch.from_numpy((digits - ord("0")).astype(np.float32))


def read_pair(
    names_path: Path, labels_path: Path, widths: Collection[int] | None = None
) -> tuple[list[str], torch.Tensor]:
    """A list of images and their label rows: (n names, float32 [n, C]); UserError where the lengths differ."""
    names, labels = read_names(names_path), read_labels(labels_path, widths)
    if len(names) != len(labels):
        raise UserError(
            f"{names_path} has {len(names)} images, {labels_path} has {len(labels)} label rows: "
            "row i of the one must belong to line i of the other."
        )
    return names, labels


def read_class_names(path: Path, num_classes: int) -> list[str] | None:
    """A name a label column, one a line, where the file exists and fits; otherwise None."""
    if not path.is_file():
        return None
    names = read_names(path)
    if len(names) != num_classes:
        raise UserError(f"{path} names {len(names)} classes, the labels have {num_classes} columns.")
    return names


def with_prefix(name: str, folder: str) -> str:
    """`name` below `folder`, whether or not the list already says so: ``im1.jpg`` -> ``mirflickr/im1.jpg``."""
    name = name.removeprefix("./")
    return name if name.startswith(f"{folder}/") else f"{folder}/{name}"


IMAGE_SIZE = 224


def find_folder(root: Path, names: Sequence[str], marker: str, what: str) -> Path:
    """The folder that holds `marker`: ``root/<one of names>`` or root itself.

    Raises:
        UserError: there is none; `what` says which dataset is looked for.
    """
    for folder in [*(root / name for name in names), root]:
        if (folder / marker).exists():
            return folder
    raise UserError(
        f"{what} is not below {root}: {root / names[0] / marker} does not exist. Give its folder with --root; "
        "docs/datasets.md says where to get it and how to lay it out."
    )


def require_files(folder: Path, names: Sequence[str], mend: str) -> None:
    """UserError naming the first of `names` that is not in `folder`."""
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: {mend}")


def given_query(count: int, options: Options, where: str) -> np.ndarray:
    """Rows of a given query list of `count` images: all, or --num-query of them drawn by the seed, ascending.

    Raises:
        UserError: more queries are asked for than the list has.
    """
    if options.num_query is None:
        return np.arange(count)
    if options.num_query > count:
        raise UserError(f"{where}: --num-query {options.num_query}, but the query list has {count} images.")
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
    """Open the images (`image_files.open_images`) and split them: `query` and `database` are rows of `names`."""
    image_size = options.image_size or IMAGE_SIZE
    shorter_side = shorter_side_for(image_size)
    source = open_images(folder, names, cache_name or name, shorter_side, options)
    return make_split(
        name,
        source,
        labels,
        query,
        database,
        image_size=image_size,
        shorter_side=shorter_side,
        class_names=class_names,
        multi_label=multi_label,
    )
