"""A gallery of image files: queries on the left, next to each the files that a search has found."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.decode import BadImage, decode
from plots.gallery import THUMBNAIL, Gallery, gallery_figure
from utils.command import MOST_PIXELS
from utils.log import printable

MOST = 10  # queries, and neighbours of each
_MISSING = 208  # the grey in place of an image that can no longer be read

Neighbour = tuple[Path, int, str]  # the file, its distance, and the text under it


def draw_files(path: Path, found: Sequence[tuple[str, Sequence[Neighbour]]], most_pixels: int = MOST_PIXELS) -> None:
    """Write the figure of `gallery_of_files` to `path`, and name on stderr the files that can no longer be read."""
    gallery, missing = gallery_of_files(found, most_pixels)
    gallery_figure(path, gallery)
    for name, reason in missing:
        print(f"{printable(name)}: drawn as a grey square: {reason}", file=sys.stderr)
    if missing:
        print(f"{len(missing)} images are missing; name their folder with --images-folder.", file=sys.stderr)
    print(f"Figure written to {path}", file=sys.stderr)


def gallery_of_files(
    found: Sequence[tuple[str, Sequence[Neighbour]]], most_pixels: int = MOST_PIXELS
) -> tuple[Gallery, list[tuple[str, str]]]:
    """A gallery of at most `MOST` queries and neighbours.

    Args:
        found: the path of each query, and its neighbours, nearest first.
        most_pixels: images with more are not read.

    Returns:
        The gallery, in which files that cannot be read are grey, and (path, reason) of these.
    """
    missing: dict[str, str] = {}  # one image may be a neighbour of several queries

    def picture(path: str | os.PathLike[str]) -> np.ndarray:
        try:
            return file_thumbnail(path, most_pixels)
        except BadImage as error:
            missing[os.fspath(path)] = str(error)
            return np.full((3, THUMBNAIL, THUMBNAIL), _MISSING, np.uint8)

    shown = [(path, neighbours[:MOST]) for path, neighbours in found[:MOST]]
    most = max(1, *(len(neighbours) for _, neighbours in shown))
    images = np.zeros((len(shown), most, 3, THUMBNAIL, THUMBNAIL), np.uint8)
    distance = np.zeros((len(shown), most))
    for place, (_, neighbours) in enumerate(shown):
        for rank, (path, near, _) in enumerate(neighbours):
            images[place, rank], distance[place, rank] = picture(path), near
    gallery = Gallery(
        query_images=np.stack([picture(path) for path, _ in shown]),
        images=images,
        distance=distance,
        query_labels=np.zeros((len(shown), 0), bool),
        labels=np.zeros((len(shown), most, 0), bool),
        texts=(
            [os.path.basename(path) for path, _ in shown],
            [[text for _, _, text in neighbours] for _, neighbours in shown],
        ),
    )
    return gallery, list(missing.items())


def file_thumbnail(path: str | os.PathLike[str], most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The middle square of an image file, uint8 [3, THUMBNAIL, THUMBNAIL]; a BadImage if it cannot be read."""
    pixels = decode(path, THUMBNAIL, most_pixels=most_pixels)
    square = ImageOps.fit(Image.fromarray(pixels), (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)
