"""Search an index for images, and show what was found (docs/search.md)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.decode import BadImage, decode
from plots.gallery import THUMBNAIL, Gallery
from search.backends import Backend
from search.encode import Encoding, encode_files, find_images
from search.exact import Rows
from search.index import Index
from search.model import TrainedModel
from utils.command import MOST_PIXELS
from utils.errors import UserError

MOST_IN_FIGURE = 10  # queries, and neighbours of each
_MISSING = 208  # the grey in place of an image that can no longer be read

Found = tuple[str, Rows, Rows]  # the path of a query; rows and distances of its neighbours


def query(
    searcher: Backend,
    trained: TrainedModel,
    images: Sequence[str],
    encoding: Encoding,
    k: int | None,
    radius: int | None,
) -> tuple[list[Found], list[tuple[str, str]]]:
    """Search for images with the model of the index.

    Args:
        searcher: how to search.
        trained: encodes the images.
        images: as for `find_images`.
        encoding: how to encode.
        k, radius: as for `Index.search`.

    Returns:
        (path, rows, distances) for each image, and (path, reason) for each that cannot be read.

    Raises:
        UserError: no image can be read.
    """
    paths = find_images(images)
    unreadable: list[tuple[str, str]] = []
    found: list[Found] = []
    for names, codes in encode_files(trained, paths, encoding, on_bad_image=lambda *image: unreadable.append(image)):
        for name, (rows, distances) in zip(names, searcher.search(codes, k, radius), strict=True):
            found.append((name, rows, distances))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:3])
        raise UserError(f"None of the {len(paths)} query images could be read ({reasons}).")
    return found, unreadable


def table(index: Index, found: Sequence[Found]) -> str:
    """One table of neighbours for each query: rank, distance, label if the index has labels, name."""
    lines = []
    for path, rows, distances in found:
        lines += ["", printable(path)]
        if not len(rows):
            lines.append("  nothing within the radius")
            continue
        labels = None if index.labels is None else [printable(index.labels[row]) for row in rows.tolist()]
        width = max(map(len, ["label", *(labels or [])]))
        middle = "" if labels is None else f"  {'label':{width}}"
        lines.append(f"  rank  distance{middle}  name")
        for rank, (row, distance) in enumerate(zip(rows.tolist(), distances.tolist(), strict=True), 1):
            middle = "" if labels is None else f"  {labels[rank - 1]:{width}}"
            lines.append(f"  {rank:4}  {distance:8}{middle}  {printable(index.names[row])}")
    return "\n".join(lines[1:])


def as_json(
    index: Index, found: Sequence[Found], unreadable: Sequence[tuple[str, str]], backend: Backend, radius: int | None
) -> dict[str, Any]:
    """The document that `--json` prints (docs/search.md)."""

    def neighbour(row: int, distance: int) -> dict[str, Any]:
        label = {} if index.labels is None else {"label": index.labels[row]}
        return {"row": row, "distance": distance, "name": index.names[row], "path": str(index.path_of(row)), **label}

    return {
        "index": str(index.folder),
        "images": len(index),
        "code_length": index.code_length,
        "fingerprint": index.fingerprint,
        "backend": backend.name,
        "exact": backend.is_exact(radius),
        "queries": [
            {"image": path, "neighbours": list(map(neighbour, rows.tolist(), distances.tolist()))}
            for path, rows, distances in found
        ],
        "unreadable": [{"image": path, "reason": reason} for path, reason in unreadable],
    }


def gallery_of_files(
    index: Index, found: Sequence[Found], most_pixels: int = MOST_PIXELS
) -> tuple[Gallery, list[tuple[str, str]]]:
    """A gallery of at most `MOST_IN_FIGURE` queries and neighbours.

    Files that can no longer be read are grey, and returned as (path, reason).
    """
    missing: dict[str, str] = {}  # one image may be a neighbour of several queries

    def picture(path: str | os.PathLike[str]) -> np.ndarray:
        try:
            return file_thumbnail(path, most_pixels)
        except BadImage as error:
            missing[os.fspath(path)] = str(error)
            return np.full((3, THUMBNAIL, THUMBNAIL), _MISSING, np.uint8)

    shown = [(path, rows[:MOST_IN_FIGURE], near[:MOST_IN_FIGURE]) for path, rows, near in found[:MOST_IN_FIGURE]]
    most = max(1, *(len(rows) for _, rows, _ in shown))
    images = np.zeros((len(shown), most, 3, THUMBNAIL, THUMBNAIL), np.uint8)
    distance = np.zeros((len(shown), most))
    texts: list[list[str]] = []
    for place, (_, rows, near) in enumerate(shown):
        distance[place, : len(near)] = near
        texts.append([])
        for rank, row in enumerate(rows.tolist()):
            images[place, rank] = picture(index.path_of(row))
            label = "" if index.labels is None else index.labels[row]
            texts[-1].append(printable(label or os.path.basename(index.names[row])))
    gallery = Gallery(
        query_images=np.stack([picture(path) for path, _, _ in shown]),
        images=images,
        distance=distance,
        query_labels=np.zeros((len(shown), 0), bool),
        labels=np.zeros((len(shown), most, 0), bool),
        texts=([printable(os.path.basename(path)) for path, _, _ in shown], texts),
    )
    return gallery, list(missing.items())


def file_thumbnail(path: str | os.PathLike[str], most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The middle square of an image file, uint8 [3, THUMBNAIL, THUMBNAIL]; a BadImage if it cannot be read."""
    pixels = decode(path, THUMBNAIL, most_pixels=most_pixels)
    square = ImageOps.fit(Image.fromarray(pixels), (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def printable(name: str) -> str:
    """A file name that any terminal can show: bytes that are not UTF-8 and control characters become �."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
