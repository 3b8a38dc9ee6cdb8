"""Datasets: `load_data` gives queries and database of any of `DATASETS` by the protocol of docs/datasets.md."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.cifar10 import load_cifar10
from data.digits import load_digits
from data.duplicates import report_duplicates
from data.flickr25k import load_flickr25k
from data.folder import load_folder
from data.image_dataset import ImageDataset, Split, hold_out
from data.imagenet import load_imagenet
from data.lists import load_lists
from data.nus_wide import load_nus_wide_tc10, load_nus_wide_tc21
from data.options import Options
from utils.errors import UserError

DATASETS: dict[str, Callable[..., Split]] = {
    "cifar-10": load_cifar10,
    "nus-wide-tc21": load_nus_wide_tc21,
    "nus-wide-tc10": load_nus_wide_tc10,
    "flickr25k": load_flickr25k,
    "imagenet": load_imagenet,
    "digits": load_digits,
    "folder": load_folder,
    "lists": load_lists,
}

_COMMON = [field.name for field in fields(Options)]


def _unknown(kind: str, name: object, choices: list[str]) -> str:
    close = difflib.get_close_matches(str(name), choices, n=1)
    return f"{kind} {name!r}: " + (f"did you mean {close[0]}? " if close else "") + f"Choose from {', '.join(choices)}."


def load_data(name: str, root: str | Path, **options: Any) -> Split:
    """Load a dataset and split it into queries and database; the split depends on the seed alone.

    Args:
        name: one of `DATASETS`.
        root: the folder below which the dataset lies (docs/datasets.md).
        **options: the fields of `data.options.Options`; `folder` and `lists` have a few more (see their loaders).

    Raises:
        UserError: an unknown dataset or option, or a dataset that is not there or not whole.
    """
    if name not in DATASETS:
        raise UserError(_unknown("There is no dataset", name, list(DATASETS)))
    loader = DATASETS[name]
    own = list(inspect.signature(loader).parameters)[2:]
    for option in options:
        if option not in _COMMON and option not in own:
            raise UserError(_unknown(f"Dataset {name} has no option", option, [*_COMMON, *own]))
    common = Options(**{key: value for key, value in options.items() if key in _COMMON})
    if common.split is not None and name != "flickr25k":
        raise UserError(f"Dataset {name} has one split only: leave --split out, it belongs to flickr25k.")
    split = loader(Path(root), common, **{key: value for key, value in options.items() if key in own})
    if common.check:
        report_duplicates(split, common.threads)
    return split


__all__ = ["DATASETS", "ImageDataset", "Split", "hold_out", "load_data"]
