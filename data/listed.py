"""What the datasets of listed images share: one source over all lists, one split of its rows."""

from __future__ import annotations

from collections.abc import Sequence
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
