"""A store of digits, and its page, for the tests of the search page."""

import http.client
import io
import json

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from search.encode import Encoding
from search.model import Model
from search.page import make_app
from search.server import LocalServer
from search.store import Store
from tests.search.tiny_model import tiny_model
from utils.command import MOST_PIXELS

IMAGES = 130
ADDRESS = "http://127.0.0.1:8765"


def store_of(folder, images):
    """A store of {name: image} below a folder whose name nobody may see."""
    base = folder / "secret-folder"
    for name, image in images.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(base / name)
    store = Store.create(str(folder / "store"), Model.from_bytes(tiny_model(32), "the tiny model"), base)
    store.add([str(base / name) for name in images], Encoding(num_workers=1))
    return store


def digits_store(folder, count=IMAGES):
    """A store of `count` digits as PNG files, one folder per class."""
    digits = load_digits()
    pixels = (digits.images[:count] * 255 / 16).round().astype(np.uint8)
    images = [Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR) for image in pixels]
    return store_of(folder, {f"{digits.target[row]}/{row:04}.png": image for row, image in enumerate(images)})


def file_of(store, row):
    """The bytes of an image of the store."""
    return store.path_of(item_of(store, row)[1]).read_bytes()


def item_of(store, row):
    """(row, name, label)."""
    collection = store.collection()
    return collection.item(collection.position_of(row))


def code_of(store, row):
    collection = store.collection()
    return collection.codes[collection.position_of(row)]


def neighbours(store, code, k, without=None, label=None):
    """(distance, row) of the k nearest images, ascending, found one by one."""
    collection = store.collection()
    distances = np.bitwise_count(collection.codes ^ code).sum(axis=1).tolist()
    pairs = zip(distances, collection.rows.tolist(), collection.labels.to_pylist(), strict=True)
    return sorted((bits, row) for bits, row, own in pairs if row != without and label in (None, own))[:k]


def pairs_of(found):
    """(distance, row) of the neighbours in an answer."""
    return [(item["distance"], item["row"]) for item in found["neighbours"]]


def app_of(store, most_pixels=MOST_PIXELS, allowed_hosts=(), writable=False):
    return make_app(store, "127.0.0.1", most_pixels, allowed_hosts, writable)


class Client:
    """Asks the page of a store, without a server."""

    def __init__(self, store, **options):
        self.store = store
        self.app = app_of(store, **options)
        self.client = self.app.test_client()

    def ask(self, path, body=None, method=None, kind="image/png", **headers):
        """The answer; a body is sent by POST."""
        return self.client.open(
            path,
            base_url=ADDRESS,
            method=method or ("GET" if body is None else "POST"),
            data=body,
            content_type=None if body is None else kind,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    def json(self, path, body=None, status=200, **options):
        answer = self.ask(path, body, **options)
        assert answer.status_code == status, answer.data
        assert answer.content_type == "application/json"
        return answer.json

    def error(self, status, path, body=None, **options):
        """The sentence of a refusal."""
        return self.json(path, body, status, **options)["error"]


def serving(store, **options):
    """The page of a store, with a server while entered."""
    return LocalServer(app_of(store, **options), "127.0.0.1", 0)


def fetch(server, path, body=None):
    """(status, content) of one request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.effective_port, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if answer.headers["Content-Type"] == "application/json" else content
    finally:
        connection.close()


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
