"""`python -m search serve`: a local page that searches an index by an image (docs/search_page.md)."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.decode import BadImage, decode
from search.encode import encode_files
from search.index import Index
from search.model import TrainedModel
from search.server import Limits, LocalServer, Refused, Reply, Request, json_reply
from utils.errors import UserError

THUMBNAIL_SIDE = 256  # pixels of the longer side, at most
MOST_NEIGHBOURS = 200
MOST_ITEMS = 200
MOST_PIXELS = 50_000_000

# Each of these begins with bytes of its own, and its header states the size that it decodes to.
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_KEPT_THUMBNAILS = 1024  # some 20 kB each
_LOSSLESS_SIDE = 64  # pixels: JPEG shows on thumbnails that a page enlarges
_DECODED_AT_ONCE = 2
_WAIT_SECONDS = 30.0
_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="7" cy="7" r="4.5" fill="none" '
    b'stroke="#4a86d0" stroke-width="2"/><path d="m10.5 10.5 4 4" stroke="#4a86d0" stroke-width="2"/></svg>'
)
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


class SearchPage:
    """What the page's addresses answer.

    Args:
        index: n images and their codes of K bits.
        trained: the model of the index, for images that are sent; None: only images of the index can be searched with.
        most_pixels: of an image that is decoded.
    """

    def __init__(self, index: Index, trained: TrainedModel | None, most_pixels: int = MOST_PIXELS) -> None:
        self.index, self.trained, self.most_pixels = index, trained, most_pixels
        self._decoding = threading.BoundedSemaphore(_DECODED_AT_ONCE)  # each may take 3 bytes a pixel
        self._hashing = threading.BoundedSemaphore(1)
        self._thumbnail = lru_cache(_KEPT_THUMBNAILS)(self._make_thumbnail)

    def addresses(self, limits: Limits) -> tuple[dict[str, Callable[[Request], Reply]], ...]:
        """What answers GET, and what answers POST, by path."""
        get: dict[str, Callable[[Request], Reply]] = {
            "/search": self.search_row,
            "/thumbnail": self.thumbnail,
            "/collection": lambda request: self.collection(request, limits),
            "/icon.svg": lambda request: Reply(_ICON, "image/svg+xml"),
        }
        folder = Path(__file__).parent / "static"
        for address, (name, kind) in _FILES.items():
            reply = Reply((folder / name).read_bytes(), kind)
            get[address] = lambda request, reply=reply: reply  # type: ignore[misc]
        return get, {"/search": self.search_image}

    def search_row(self, request: Request) -> Reply:
        """GET /search?row=N&k=10: neighbours of an image of the index, itself left out."""
        request.only("row", "k")
        row, k = self._row(request), self._k(request)
        rows, distances = self._search(self.index.codes[row : row + 1], k + 1)
        other = rows != row
        return self._neighbours(self._item(row), rows[other][:k], distances[other][:k])

    def search_image(self, request: Request) -> Reply:
        """POST /search?k=10: neighbours of the image that is the body."""
        request.only("k")
        k = self._k(request)
        return self._neighbours(None, *self._search(self._hash(request.body), k))

    def thumbnail(self, request: Request) -> Reply:
        """GET /thumbnail?row=N: the image, at most 256 × 256 pixels; JPEG, or PNG where it is small."""
        request.only("row")
        return self._thumbnail(self._row(request))

    def collection(self, request: Request, limits: Limits) -> Reply:
        """GET /collection?start=N&count=60: what the index is, and some of its images in the order of the index."""
        request.only("start", "count")
        size = len(self.index)
        start = request.whole_number("start", 0, max(size - 1, 0), 0)
        count = request.whole_number("count", 1, MOST_ITEMS, 60)
        return json_reply(
            {
                "images": size,
                "code_length": self.index.code_length,
                "uploads": self.trained is not None,
                "most_bytes": limits.body_bytes,
                "start": start,
                "items": [self._item(row) for row in range(start, min(start + count, size))],
            }
        )

    def _row(self, request: Request) -> int:
        size = len(self.index)
        row = request.whole_number("row", 0, 10**15)
        if row >= size:
            raise Refused(HTTPStatus.NOT_FOUND, f"There is no image {row:,}: the index holds {size:,}, counted from 0.")
        return row

    @staticmethod
    def _k(request: Request) -> int:
        return request.whole_number("k", 1, MOST_NEIGHBOURS, 10)

    def _item(self, row: int) -> dict[str, Any]:
        # The folders above an image are nobody's business who looks at the page.
        name = os.path.basename(self.index.names[row])
        label = "" if self.index.labels is None else self.index.labels[row]
        return {"row": row, "name": name, "labels": [label] if label else []}

    def _search(self, code: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """code uint8 [1, ceil(K/8)] → rows and distances, int [≤ k], nearest first."""
        return self.index.search(code, k=k)[0]

    def _neighbours(self, query: dict[str, Any] | None, rows: np.ndarray, distances: np.ndarray) -> Reply:
        found = [
            self._item(row) | {"distance": distance}
            for row, distance in zip(rows.tolist(), distances.tolist(), strict=True)
        ]
        about = {"images": len(self.index), "code_length": self.index.code_length}
        return json_reply({"query": query, **about, "neighbours": found})

    def _hash(self, body: bytes) -> np.ndarray:
        """The code of an image file, uint8 [1, ceil(K/8)], to the bit as `python -m search encode` has it."""
        if self.trained is None:
            raise Refused(HTTPStatus.CONFLICT, "The index was opened without its model; choose an image of the index.")
        if not body:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "The file is empty.")
        with _turn(self._decoding):
            try:
                pixels = decode(
                    io.BytesIO(body), self.trained.shorter_side, formats=UPLOAD_FORMATS, most_pixels=self.most_pixels
                )
            except BadImage as error:
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(error)) from error
        # Without loss, and no larger than the network wants it: read again it gives these very pixels.
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")
        file.seek(0)
        with _turn(self._hashing):
            encoded = encode_files(self.trained, [cast(str, file)], device=_device(self.trained), num_workers=1)
            [(_, code)] = encoded
            return code

    def _make_thumbnail(self, row: int) -> Reply:
        with _turn(self._decoding):
            try:
                pixels = decode(self.index.path_of(row), THUMBNAIL_SIDE, most_pixels=self.most_pixels)
            except (BadImage, UserError) as error:
                raise Refused(HTTPStatus.NOT_FOUND, f"The file of image {row:,} cannot be read any more.") from error
        image = Image.fromarray(pixels)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        file = io.BytesIO()
        if max(image.size) <= _LOSSLESS_SIDE:
            image.save(file, "PNG")
            return Reply(file.getvalue(), "image/png")
        image.save(file, "JPEG", quality=85)
        return Reply(file.getvalue(), "image/jpeg")


def make_server(
    index: Index,
    trained: TrainedModel | None,
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    limits: Limits | None = None,
    most_pixels: int = MOST_PIXELS,
) -> LocalServer:
    """The page's server, listening; ``serve_forever()`` answers, ``server_close()`` ends it.

    Args:
        index, trained, most_pixels: see `SearchPage`.
        host, port: where to listen; port 0 takes a free one (`server_port`).
        limits: see `search.server.Limits`; None: its defaults.

    Raises:
        UserError: the model is not that of the index, or the address cannot be had.
    """
    if trained is not None:
        index.matches(trained)
    limits = limits or Limits()
    get, post = SearchPage(index, trained, most_pixels).addresses(limits)
    kinds = ("image/*", "application/octet-stream")
    try:
        return LocalServer(host, port, get=get, post=post, post_kinds=kinds, limits=limits)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); choose another port.") from error


def serve(index: Index, trained: TrainedModel | None, host: str = "127.0.0.1", port: int = 8765) -> None:
    """Serve the page until a signal's exception ends it, which is passed on.

    Raises:
        UserError: see `make_server`.
    """
    with make_server(index, trained, host, port) as server:
        print(f"{len(index):,} images: {server.address} (Ctrl+C ends it)", flush=True)
        # In a thread of its own: there, a signal's exception would pass for an error of some request.
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            thread.join()
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _turn(places: threading.BoundedSemaphore) -> Iterator[None]:
    if not places.acquire(timeout=_WAIT_SECONDS):
        raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The server is busy; try again in a while.")
    try:
        yield
    finally:
        places.release()


def _device(trained: TrainedModel) -> Any:
    """Where the network's weights lie."""
    return next(trained.model.parameters()).device


def _sentence(error: BadImage) -> str:
    if isinstance(error.__cause__, UnidentifiedImageError):
        return f"This file is no image that can be read here ({', '.join(UPLOAD_FORMATS)})."
    if isinstance(error.__cause__, Image.DecompressionBombError):
        return "This image cannot be read: it has too many pixels."
    return f"This image cannot be read: {str(error).rstrip('.')}."
