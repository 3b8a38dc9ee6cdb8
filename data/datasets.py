"""`load_data` loads any of `DATASETS` and splits it by the protocol in docs/datasets.md."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from data.cifar10 import load_cifar10
from data.digits import load_digits
from data.duplicates import report_duplicates, report_shared_names
from data.flickr25k import FLICKR25K
from data.folder import load_folder
from data.image_dataset import Split, separate_training
from data.imagenet import load_imagenet
from data.lists import load_lists
from data.nus_wide import TC10, TC21
from data.options import Options
from utils.errors import UserError

DATASETS: dict[str, Callable[[Path, Options], Split]] = {
    "cifar-10": load_cifar10,
    "nus-wide-tc21": TC21.load,
    "nus-wide-tc10": TC10.load,
    "flickr25k": FLICKR25K.load,
    "imagenet": load_imagenet,
    "digits": load_digits,
    "folder": load_folder,
    "lists": load_lists,
}

NUM_TRAIN = 5000  # of the protocol train-5000


def load_data(name: str, root: str | Path, options: Options) -> Split:
    """Load one of `DATASETS` from the folder `root`, its own or that of all datasets, and split it by the seed.

    Raises:
        UserError: an unknown dataset, an option of another dataset, or a dataset that is missing or incomplete.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"There is no dataset {name!r}: {hint}Choose from {', '.join(DATASETS)}.")
    options.require_fitting(name)
    split = DATASETS[name](Path(root), options)
    if options.protocol == "train-5000":
        split = separate_training(split, NUM_TRAIN, options.seed)
    report_shared_names(split)
    if options.check:
        report_duplicates(split, options.threads)
    return split
