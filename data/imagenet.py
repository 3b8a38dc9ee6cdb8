"""ImageNet, or a part of it such as ImageNet-100: ``train/<class>/`` is the database, ``val/<class>/`` the queries.

Classes are the folders of ``train/`` in alphabetical order. 50 images a class of ``val/`` are queries, drawn by the
seed where it holds more, all where it holds fewer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.folder import class_folders, images_of_classes
from data.image_dataset import Split
from data.list_files import find_folder, split_of_files
from data.options import Options
from data.split import one_hot, per_class, sample_rows
from utils.errors import UserError

FOLDERS = ("imagenet", "ImageNet", "imagenet100", "ImageNet100", "ILSVRC2012")
QUERY_PER_CLASS = 50


def load_imagenet(root: Path, options: Options) -> Split:
    """ImageNet; UserError where a folder is missing, a class has no images, or there are too few queries."""
    folder = find_folder(root, FOLDERS, "train", "ImageNet")
    if not (folder / "val").is_dir():
        raise UserError(f"{folder / 'val'} is missing: the queries come from val/<class>/ (docs/datasets.md).")
    classes = class_folders(folder / "train")
    val_classes = class_folders(folder / "val")
    for one, other, names in (("val", "train", set(val_classes) - set(classes)),
                              ("train", "val", set(classes) - set(val_classes))):  # fmt: skip
        if names:
            raise UserError(f"Class {min(names)} is in {folder / one} and not in {folder / other}: make them agree.")
    train_names, train_targets = images_of_classes(folder / "train", classes)
    val_names, val_targets = images_of_classes(folder / "val", classes)

    asked = None if options.num_query is None else per_class(options.num_query, len(classes), "imagenet")
    chosen = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(np.array(val_targets) == label)
        if asked is not None and asked > len(members):
            raise UserError(
                f"--num-query {options.num_query} takes {asked} images a class; {folder / 'val' / name} has "
                f"{len(members)}."
            )
        size = min(asked or QUERY_PER_CLASS, len(members))
        chosen.append(members[sample_rows(len(members), size, options.seed, label)])

    return split_of_files(
        "imagenet",
        folder,
        [f"train/{name}" for name in train_names] + [f"val/{name}" for name in val_names],
        one_hot(np.array(train_targets + val_targets), len(classes)),
        len(train_names) + np.concatenate(chosen),
        np.arange(len(train_names)),
        options,
        class_names=classes,
        multi_label=False,
    )
