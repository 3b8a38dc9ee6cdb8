"""The images below a folder: the one walk of training, encoding and indexing."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from data.decode import EXTENSIONS
from utils.errors import UserError
from utils.log import log

# Folders that a NAS, a trash or an archive keeps beside the user's own.
_NOT_THE_USERS = frozenset({"@eaDir", "@Recycle", "#recycle", "#snapshot", "__MACOSX"})
_CACHES = (".pixels", ".pixels.lock", ".pixels.part")  # data/pixel_cache.py
_KINDS_NAMED = 8  # kinds of files that a message names; it counts the others


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is passed over without a word: it is hidden, or not the user's own."""
    return name.startswith(".") or name in _NOT_THE_USERS or name.endswith(_CACHES)


def images_below(root: Path) -> list[str]:
    """The images in `root` at any depth, by their extensions: sorted, relative to `root`, with slashes.

    Links to files and to folders are followed, except a link to a folder that it is in. What is hidden is passed over;
    other files are counted in the log, by extension.

    Raises:
        UserError: `root` cannot be read.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    waiting = [("", frozenset[tuple[int, int]]())]
    while waiting:
        folder, above = waiting.pop()
        path = os.path.join(root, folder)
        try:
            status = os.stat(path)
            with os.scandir(path) as opened:
                entries = [entry for entry in opened if not is_passed_over(entry.name)]
        except OSError as error:
            if not folder:
                raise UserError(f"{root} cannot be read: {error.strerror or error}.") from error
            log.warning("%s cannot be read (%s); it is left out", path, error.strerror or error)
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            extension = os.path.splitext(entry.name)[1].lower()
            if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
                waiting.append((name, above | {here}))
            elif not entry.is_file(follow_symlinks=False) and os.path.exists(entry) and not os.path.isfile(entry):
                others["pipes or devices"] += 1
            elif extension in EXTENSIONS:  # also a link to nothing, which is reported as a missing image
                images.append(name)
            else:
                others[extension or "without extension"] += 1
    if others:
        log.warning("%s: %s", root, _passed_over(others))
    return sorted(images)


def _passed_over(others: Counter[str]) -> str:
    """``3 files that are no images are passed over: 2 .txt, 1 without extension``."""
    total, kinds = others.total(), others.most_common()
    named = [f"{count:,} {kind}" for kind, count in kinds[:_KINDS_NAMED]]
    if kinds[_KINDS_NAMED:]:
        named.append(f"{sum(count for _, count in kinds[_KINDS_NAMED:]):,} others")
    hint = "; to read HEIC, install pillow-heif" if {".heic", ".heif"} & others.keys() else ""
    are = "files that are no images are" if total > 1 else "file that is no image is"
    return f"{total:,} {are} passed over: {', '.join(named)}{hint}"
