"""Images in one folder a class."""

from __future__ import annotations

import os
from pathlib import Path

from data.decode import EXTENSIONS
from utils.errors import UserError


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, hidden ones left out; UserError where there is none."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror or error}.") from error
    if not names:
        raise UserError(f"{root} holds no folders: it needs one folder of images for each class.")
    return names


def images_below(root: Path, folder: str) -> list[str]:
    """Every image below ``root/folder``, at any depth, by its file's extension: sorted names relative to `root`.

    Hidden files and files of other kinds are left out.
    """
    found = []
    for place, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                found.append(Path(place, name).relative_to(root).as_posix())
    return sorted(found)


def images_of_classes(root: Path, classes: list[str]) -> tuple[list[str], list[int]]:
    """(names relative to root, class of each), class by class; UserError names a class without images."""
    names: list[str] = []
    targets: list[int] = []
    for label, folder in enumerate(classes):
        found = images_below(root, folder)
        if not found:
            raise UserError(f"{root / folder} holds no image: add images or take the folder away.")
        names += found
        targets += [label] * len(found)
    return names, targets
