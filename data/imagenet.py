"""ImageNet, or a part of it such as ImageNet-100: ``train/<class>/`` is the database, ``val/<class>/`` the queries.

Classes are the folders of ``train/`` in alphabetical order. 50 images per class of ``val/`` are queries: drawn by the
seed where there are more, all where there are fewer.
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

_FOLDERS = ("imagenet", "ImageNet", "imagenet100", "ImageNet100", "ILSVRC2012")
QUERY_PER_CLASS = 50


def load_imagenet(root: Path, options: Options) -> Split:
    """ImageNet.

    Raises:
        UserError: a folder is missing, a class has no images, or a class has fewer images than --num-query needs.
    """
    folder = find_folder(root, _FOLDERS, "train", "ImageNet")
    train, val = folder / "train", folder / "val"
    if not val.is_dir():
        raise UserError(f"{val} is missing; the queries come from val/<class>/ (docs/datasets.md).")
    classes, val_classes = class_folders(train), class_folders(val)
    for one, other, extra in ((val, train, {*val_classes} - {*classes}), (train, val, {*classes} - {*val_classes})):
        if extra:
            raise UserError(f"Class {min(extra)} is in {one} but not in {other}; both need the same class folders.")
    train_names, train_targets = images_of_classes(train, classes)
    val_names, val_targets = images_of_classes(val, classes)

    wanted = None if options.num_query is None else per_class(options.num_query, len(classes), "imagenet")
    chosen = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(val_targets == label)
        if wanted is not None and wanted > len(members):
            raise UserError(
                f"--num-query {options.num_query} takes {wanted} images per class, but {val / name} has only "
                f"{len(members)}; give a smaller number."
            )
        size = min(wanted or QUERY_PER_CLASS, len(members))
        chosen.append(members[sample_rows(len(members), size, options.seed, label)])

    names = [f"train/{name}" for name in train_names] + [f"val/{name}" for name in val_names]
    labels = one_hot(np.concatenate([train_targets, val_targets]), len(classes))
    rows = (len(train_names) + np.concatenate(chosen), np.arange(len(train_names)))
    return split_of_files("imagenet", folder, names, labels, rows, options, classes)
