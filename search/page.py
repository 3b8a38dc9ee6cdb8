"""A local page that searches a store by an image: `python -m search serve` (docs/search_page.md)."""

from __future__ import annotations

import hashlib
import io
import json
import mimetypes
import re
import threading
from contextlib import ExitStack, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from flask import Flask, Response, abort, current_app, request
from PIL import Image, UnidentifiedImageError
from werkzeug.utils import secure_filename

from data.decode import BadImage, decode, open_image
from data.prepare import prepare_image
from search.encode import Encoding
from search.exact import Collection, Neighbours
from search.server import MOST_BYTES, protected_app
from search.store import Store
from utils.errors import UserError
from utils.files import write_file

# Each of these starts with bytes that identify it, and its header gives the size of the image.
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *({"HEIF"} & Image.OPEN.keys()))
_STATIC = Path(__file__).parent / "static"
_PARAMETERS = json.loads((_STATIC / "openapi.json").read_text(encoding="utf-8"))["components"]["parameters"]
_WAIT_SECONDS = 30.0


class _Places(threading.BoundedSemaphore):  # for work that only so many requests do at once
    def __enter__(self, *_: Any) -> bool:
        if not self.acquire(timeout=_WAIT_SECONDS):
            abort(503, "The server is busy; try again in a few seconds.")
        return True


class SearchPage:
    """The views of the app; static/openapi.json describes their parameters and answers."""

    def __init__(self, store: Store, most_pixels: int, writable: bool) -> None:
        self.store, self.most_pixels, self.writable = store, most_pixels, writable
        self._decoding = _Places(2)  # each takes up to 3 bytes per pixel
        self._encoding = _Places(1)
        self._thumbnail = lru_cache(1024)(self._make_thumbnail)  # about 20 kB each

    def search_row(self) -> dict[str, Any]:
        row, k, label = self._parameters("row", "k", "label")
        collection, position = self._find(row)
        [found] = self.store.search(collection.codes[position : position + 1], k + 1, label=label)
        others = [item for item in _items(found) if item["row"] != row]
        return self._answer(_item(*collection.item(position)), others[:k])

    def search_image(self) -> dict[str, Any]:
        (k, label), body = self._parameters("k", "label"), request.get_data()
        image = self._prepare(body)
        with self._encoding:
            code = self.store.model().codes(image)
        [found] = self.store.search(code, k, label=label)
        twins = ((row, name, label) for row, bits, name, label in found if bits == 0)
        same = (_item(*item) for item in twins if _holds(self.store.path_of(item[1]), body))
        return self._answer(next(same, None), _items(found))

    def collection(self) -> dict[str, Any]:
        start, count, label = self._parameters("start", "count", "label")
        collection = self.store.collection()
        positions = np.arange(len(collection)) if label is None else np.flatnonzero(pc.equal(collection.labels, label))
        if start > max(len(positions) - 1, 0):
            abort(400, f"'start' must be less than {len(positions):,}.")
        return {
            "images": len(collection),
            "code_length": self.store.code_length,
            "writable": self.writable,
            "most_bytes": MOST_BYTES,
            "start": start,
            "found": len(positions),
            "items": [_item(*collection.item(position)) for position in positions[start : start + count].tolist()],
        }

    def labels(self) -> dict[str, Any]:
        self._parameters()
        return {"labels": self.store.labels()}

    def thumbnail(self) -> Response:
        [row] = self._parameters("row")
        collection, position = self._find(row)
        path = self.store.path_of(collection.item(position)[1])
        try:
            state = path.stat()
            body, kind = self._thumbnail(path, state.st_mtime_ns, state.st_size)
        except (BadImage, OSError):
            abort(404, f"The file of image {row:,} can no longer be read.")
        return Response(body, mimetype=kind)

    def add(self) -> dict[str, Any]:
        if not self.writable:
            abort(403, "Images can only be added if the server was started with --writable.")
        [given], body = self._parameters("name"), request.get_data()
        self._prepare(body)  # refuses what is not an image
        with open_image(io.BytesIO(body), formats=UPLOAD_FORMATS, most_pixels=self.most_pixels) as image:
            kind = str(image.format).lower()
        stem = Path(secure_filename(given or "")).stem[:60] or "image"
        name = f"added/{stem}-{hashlib.sha256(body).hexdigest()[:12]}.{kind}"
        path = self.store.images / name
        with self._encoding, ExitStack() as undo:
            if not path.exists():
                undo.callback(path.unlink, missing_ok=True)
            try:
                path.parent.mkdir(exist_ok=True)
                write_file(path, lambda file: file.write(body))
                self.store.add([str(path)], Encoding(num_workers=1, max_pixels=self.most_pixels))
            except UserError as error:
                current_app.logger.error("%s", error)  # it names folders
                abort(409, "The store cannot be changed now; the terminal of the server says why.")
            undo.pop_all()
        collection = self.store.collection()
        [position] = np.flatnonzero(pc.equal(collection.names, name)).tolist()
        return {"image": _item(*collection.item(position)), "images": len(collection)}

    def _parameters(self, *names: str) -> list[Any]:
        """The values of these parameters, in this order; whatever else openapi.json does not allow is refused."""
        for name, given in request.args.lists():
            if name not in names or len(given) > 1:
                abort(400, f"Parameter '{name[:40]}' is unknown or given twice.")
        values: list[Any] = []
        for name in names:
            schema = _PARAMETERS[name]["schema"]
            value = request.args.get(name, schema.get("default"))
            if schema["type"] == "integer":
                low, high = schema["minimum"], schema["maximum"]
                if not re.fullmatch("[0-9]{1,15}", str(value)) or not low <= int(value) <= high:
                    abort(400, f"'{name}' must be a whole number from {low:,} to {high:,}.")
                value = int(value)
            elif name == "label" and value is not None and value not in self.store.labels():
                abort(404, f"No image has the label '{value[:80]}'.")
            values.append(value)
        return values

    def _find(self, row: int) -> tuple[Collection, int]:
        collection = self.store.collection()
        try:
            return collection, collection.position_of(row)
        except KeyError:
            abort(404, f"There is no image {row:,}; it may have been removed.")

    def _answer(self, query: dict[str, Any] | None, found: list[dict[str, Any]]) -> dict[str, Any]:
        return {"query": query, "images": len(self.store), "code_length": self.store.code_length, "neighbours": found}

    def _prepare(self, body: bytes) -> np.ndarray:
        """An image file as the input of the model, uint8 [1, S, S, 3], the same as for `python -m search encode`."""
        if not body:
            abort(422, "The file is empty.")
        file, model = io.BytesIO(body), self.store.model()
        with self._decoding:
            image = prepare_image(file, model.image_size, model.shorter_side, self.most_pixels, UPLOAD_FORMATS)
        if isinstance(image, np.ndarray):
            return image[None]
        if isinstance(image.__cause__, UnidentifiedImageError):  # its message has internal details
            abort(422, f"This file is not an image in a format that can be read ({', '.join(UPLOAD_FORMATS)}).")
        abort(422, f"This image cannot be read: {str(image).rstrip('.')}.")

    def _make_thumbnail(self, path: Path, modified: int, size: int) -> tuple[bytes, str]:
        """The bytes and the media type; `modified` and `size` only tell apart the versions of a file."""
        with self._decoding:
            image = Image.fromarray(decode(path, 256, most_pixels=self.most_pixels))
        image.thumbnail((256, 256))
        kind = "png" if max(image.size) <= 64 else "jpeg"  # the page enlarges small ones
        file = io.BytesIO()
        image.save(file, kind, quality=85)  # PNG has no quality
        return file.getvalue(), f"image/{kind}"


def make_app(store: Store, host: str, most_pixels: int, allowed_hosts: list[str], writable: bool) -> Flask:
    """The app of a `SearchPage`; `host`, `allowed_hosts` as for `protected_app`. UserError: the store is damaged."""
    store.model()
    store.collection()  # read now, not by the first request
    page, app = SearchPage(store, most_pixels, writable), protected_app(__name__, host, allowed_hosts)
    app.get("/search")(page.search_row)
    app.post("/search")(page.search_image)
    app.post("/add")(page.add)
    for view in (page.collection, page.labels, page.thumbnail):
        app.get(f"/{view.__name__}")(view)
    for name in ("page.html", "page.css", "page.js", "icon.svg", "openapi.json"):  # no path reaches the file system
        answer = partial(Response, (_STATIC / name).read_bytes(), mimetype=mimetypes.guess_type(name)[0])
        app.add_url_rule("/" if name == "page.html" else f"/{name}", name, answer)
    return app


def _item(row: int, name: str, label: str) -> dict[str, Any]:
    return {"row": row, "name": Path(name).name, "label": label}  # without folders, which are private


def _items(found: Neighbours) -> list[dict[str, Any]]:
    return [_item(row, name, label) | {"distance": distance} for row, distance, name, label in found]


def _holds(path: Path, content: bytes) -> bool:
    with suppress(OSError):
        return path.stat().st_size == len(content) and path.read_bytes() == content
    return False
