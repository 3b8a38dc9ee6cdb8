"""Which images a command line names. Needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data.decode import EXTENSIONS
from data.name_lists import read_names, split_labels
from data.walk import images_below
from utils.errors import UserError
from utils.log import log, printable

_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what Python makes of other bytes in a name


def find_images(inputs: Sequence[str]) -> list[str]:
    """The paths of all images that `inputs` name, as they can be opened from the current folder.

    Args:
        inputs: image files; folders, for every image below them, sorted; lists (`.txt`) with one path per line,
            relative to the folder of the list.

    Raises:
        UserError: an input does not exist, a list is malformed, or there is no image.
    """
    found: list[str] = []
    for given in inputs:
        if os.path.isdir(given):
            found += [os.path.join(given, name) for name in images_below(Path(given))]
        elif not os.path.exists(given):
            raise UserError(f"{given}: there is no such file or folder.")
        elif given.lower().endswith(".txt"):
            folder = os.path.dirname(given)
            found += [os.path.join(folder, without_labels(name)) for name in read_names(Path(given))]
        else:
            found.append(given)
    if not found:
        raise UserError(f"{', '.join(inputs)}: no image found; name image files, folders of images, or lists.")
    return found


def labelled_images(inputs: Sequence[str]) -> dict[str, str]:
    """{absolute path: label} of what `find_images` finds; the label is the first folder below the one given, or "".

    Links below a folder that was given stay as they are. What was given twice counts once. A name that is not UTF-8 is
    left out, with a warning.
    """
    images: dict[str, str] = {}
    real = cache(os.path.realpath)
    for given in inputs:
        for path in find_images([given]):
            if _NOT_UTF8.search(path):
                log.warning("%s: skipped (its name is not UTF-8; rename it)", printable(path))
                continue
            head, tail = (given, os.path.relpath(path, given)) if os.path.isdir(given) else os.path.split(path)
            label = tail.split(os.sep)[0] if os.sep in tail else ""
            images.setdefault(os.path.join(real(head or "."), tail), label)
    return images


def without_labels(line: str) -> str:
    """A line of a list without the labels after the name: ``a b.jpg 0 1 0`` → ``a b.jpg``."""
    name, _ = split_labels(line)
    is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
    return name if is_image else line
