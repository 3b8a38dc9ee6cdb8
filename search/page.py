"""A local page that searches an index by an image: `python -m search serve` (docs/search_page.md)."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.decode import BadImage, decode
from search.encode import Encoding, encode_files
from search.index import Index
from search.model import TrainedModel
from search.server import DEFAULT_LIMITS, Answer, Limits, LocalServer, Refused, Reply, Request, json_reply
from utils.command import MOST_PIXELS
from utils.errors import UserError

THUMBNAIL_SIDE = 256  # pixels of the longer side, at most
MOST_NEIGHBOURS = 200
MOST_ITEMS = 200

# Each of these starts with bytes that identify it, and its header gives the size of the image.
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *({"HEIF"} & Image.OPEN.keys()))

_KEPT_THUMBNAILS = 1024  # about 20 kB each
_LOSSLESS_SIDE = 64  # pixels: JPEG artefacts would be visible in thumbnails that the page enlarges
_DECODED_AT_ONCE = 2
_WAIT_SECONDS = 30.0
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class SearchPage:
    """What the server answers at each address.

    Args:
        trained: the model of the index, for uploaded images; None: only images of the index can be queries.
        limits: those of the server.
        most_pixels: images with more pixels are not decoded.
    """

    def __init__(self, index: Index, trained: TrainedModel | None, limits: Limits, most_pixels: int) -> None:
        self.index, self.trained, self.limits, self.most_pixels = index, trained, limits, most_pixels
        self._decoding = threading.BoundedSemaphore(_DECODED_AT_ONCE)  # each takes up to 3 bytes per pixel
        self._encoding = threading.BoundedSemaphore(1)
        self._thumbnail = lru_cache(_KEPT_THUMBNAILS)(self._make_thumbnail)

    def get(self) -> dict[str, Answer]:
        """The functions that answer GET, by path."""
        get: dict[str, Answer] = {
            "/search": self.search_row,
            "/thumbnail": self.thumbnail,
            "/collection": self.collection,
        }
        folder = Path(__file__).parent / "static"
        for address, (name, kind) in _FILES.items():
            reply = Reply((folder / name).read_bytes(), kind)
            get[address] = lambda request, reply=reply: reply  # type: ignore[misc]
        return get

    def search_row(self, request: Request) -> Reply:
        """GET /search?row=N&k=10: neighbours of an image of the index, without the image itself."""
        request.only("row", "k")
        row, k = self._row(request), request.whole_number("k", 1, MOST_NEIGHBOURS, 10)
        [(rows, distances)] = self.index.search(self.index.codes[row : row + 1], k + 1)
        other = rows != row
        return self._neighbours(self._item(row), rows[other][:k], distances[other][:k])

    def search_image(self, request: Request) -> Reply:
        """POST /search?k=10: neighbours of the image in the body."""
        request.only("k")
        k = request.whole_number("k", 1, MOST_NEIGHBOURS, 10)
        [(rows, distances)] = self.index.search(self._encode(request.body), k)
        return self._neighbours(None, rows, distances)

    def thumbnail(self, request: Request) -> Reply:
        """GET /thumbnail?row=N: the image, at most 256 × 256 pixels; JPEG, or PNG if it is small."""
        request.only("row")
        return self._thumbnail(self._row(request))

    def collection(self, request: Request) -> Reply:
        """GET /collection?start=N&count=60: about the index, and some of its images in their order."""
        request.only("start", "count")
        size = len(self.index)
        start = request.whole_number("start", 0, max(size - 1, 0), 0)
        count = request.whole_number("count", 1, MOST_ITEMS, 60)
        return json_reply(
            {
                "images": size,
                "code_length": self.index.code_length,
                "uploads": self.trained is not None,
                "most_bytes": self.limits.body_bytes,
                "start": start,
                "items": [self._item(row) for row in range(start, min(start + count, size))],
            }
        )

    def _row(self, request: Request) -> int:
        size = len(self.index)
        row = request.whole_number("row", 0, 10**15)
        if row >= size:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no image {row:,}: the index has {size:,}, counted from 0.")
        return row

    def _item(self, row: int) -> dict[str, Any]:
        # Names are shown without their folders, which are private.
        name = os.path.basename(self.index.names[row])
        label = "" if self.index.labels is None else self.index.labels[row]
        return {"row": row, "name": name, "labels": [label] if label else []}

    def _neighbours(self, query: dict[str, Any] | None, rows: np.ndarray, distances: np.ndarray) -> Reply:
        found = [
            self._item(row) | {"distance": distance}
            for row, distance in zip(rows.tolist(), distances.tolist(), strict=True)
        ]
        about = {"images": len(self.index), "code_length": self.index.code_length}
        return json_reply({"query": query, **about, "neighbours": found})

    def _encode(self, body: bytes) -> np.ndarray:
        """The code of an image file, uint8 [1, ceil(K/8)], the same as from `python -m search encode`."""
        if self.trained is None:
            raise Refused(HTTPStatus.CONFLICT, "The index was opened without a model; choose an image of the index.")
        if not body:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "The file is empty.")
        with _turn(self._decoding):
            try:
                pixels = decode(
                    io.BytesIO(body), self.trained.shorter_side, formats=UPLOAD_FORMATS, most_pixels=self.most_pixels
                )
            except BadImage as error:
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, _reason(error)) from error
        # Lossless, and no larger than the network needs: decoding it again gives exactly these pixels.
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")
        file.seek(0)
        with _turn(self._encoding):
            encoding = Encoding(device=next(self.trained.model.parameters()).device, num_workers=1)
            [(_, code)] = encode_files(self.trained, [cast(str, file)], encoding)
            return code

    def _make_thumbnail(self, row: int) -> Reply:
        with _turn(self._decoding):
            try:
                pixels = decode(self.index.path_of(row), THUMBNAIL_SIDE, most_pixels=self.most_pixels)
            except (BadImage, UserError) as error:
                raise Refused(HTTPStatus.NOT_FOUND, f"The file of image {row:,} can no longer be read.") from error
        image = Image.fromarray(pixels)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        kind = "png" if max(image.size) <= _LOSSLESS_SIDE else "jpeg"
        file = io.BytesIO()
        image.save(file, kind, quality=85)  # PNG has no quality
        return Reply(file.getvalue(), f"image/{kind}")


def make_server(
    index: Index,
    trained: TrainedModel | None,
    host: str,
    port: int,
    limits: Limits = DEFAULT_LIMITS,
    most_pixels: int = MOST_PIXELS,
    allowed_hosts: Iterable[str] = (),
) -> LocalServer:
    """Create the server of a `SearchPage` and listen; ``serve_forever()`` answers, ``server_close()`` ends it.

    Raises:
        UserError: the model is not that of the index, or the server cannot listen there.
    """
    if trained is not None:
        index.matches(trained)
    page = SearchPage(index, trained, limits, most_pixels)
    kinds = ("image/*", "application/octet-stream")
    try:
        return LocalServer(
            host, port, get=page.get(), post={"/search": page.search_image}, post_kinds=kinds, limits=limits,
            allowed_hosts=allowed_hosts,
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({error}); choose another host or port."
        ) from error


def serve(
    index: Index,
    trained: TrainedModel | None,
    host: str,
    port: int,
    most_pixels: int = MOST_PIXELS,
    allowed_hosts: Iterable[str] = (),
) -> None:
    """Serve the page until the exception of a signal ends it; the exception is raised again."""
    with make_server(index, trained, host, port, most_pixels=most_pixels, allowed_hosts=allowed_hosts) as server:
        print(f"{len(index):,} images: {server.address} (Ctrl+C stops the server)", flush=True)
        # In a thread of its own: in this one, the exception of a signal would be taken for an error of a request.
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            thread.join()
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _turn(places: threading.BoundedSemaphore) -> Iterator[None]:
    """Wait for one of the places and hold it."""
    if not places.acquire(timeout=_WAIT_SECONDS):
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again in a few seconds.")
    try:
        yield
    finally:
        places.release()


def _reason(error: BadImage) -> str:
    """Why an uploaded image is refused, without internal details."""
    if isinstance(error.__cause__, UnidentifiedImageError):
        return f"This file is not an image in a format that can be read ({', '.join(UPLOAD_FORMATS)})."
    return f"This image cannot be read: {str(error).rstrip('.')}."
