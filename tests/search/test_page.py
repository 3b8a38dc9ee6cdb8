"""What the search page answers, and what it refuses."""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit
from urllib.request import Request, urlopen

import jsonschema
import pytest
from openapi_spec_validator import validate
from PIL import Image

import search.page
from search.__main__ import main
from search.encode import encode_files
from search.store import Store
from tests.image_trees import photo
from tests.search.digits_page import (
    IMAGES,
    Client,
    code_of,
    digits_store,
    encoded,
    file_of,
    item_of,
    neighbours,
    pairs_of,
    store_of,
)
from utils.files import locked


@pytest.fixture
def writable(tmp_path):
    """The page of a small store, which may be changed."""
    return Client(digits_store(tmp_path, 12), writable=True)


# ---- Answers ----


@pytest.mark.parametrize("row", [0, 7, IMAGES - 1])
def test_neighbours_of_an_image_of_the_collection(client, digits, row):
    found = client.json(f"/search?row={row}&k=12")
    assert pairs_of(found) == neighbours(digits, code_of(digits, row), 12, without=row)
    _, name, label = item_of(digits, row)
    assert found["query"] == {"row": row, "name": os.path.basename(name), "label": label}
    assert (found["images"], found["code_length"]) == (IMAGES, digits.code_length)
    assert len(client.json(f"/search?row={row}")["neighbours"]) == 10
    assert len(client.json(f"/search?row={row}&k=200")["neighbours"]) == IMAGES - 1


def test_an_image_with_many_twins_is_not_its_own_neighbour(tmp_path):
    page = Client(store_of(tmp_path, {f"{number}.png": photo(1, 20, 20) for number in range(8)}))
    found = page.json("/search?row=7&k=5")
    assert pairs_of(found) == [(0, row) for row in range(5)] and found["query"]["label"] == ""


def test_an_image_that_is_sent_gets_the_code_of_the_encoding(client, digits, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image, options in (
        ("upright.png", photo(3, 90, 70), {}),
        ("turned.jpg", photo(4, 300, 200), {"exif": turned}),
        ("grey.png", photo(5, 64, 64).convert("L"), {}),
        ("palette.gif", photo(6, 80, 64).convert("P"), {}),
        ("small.bmp", photo(7, 9, 11), {}),
    ):
        path = tmp_path / name
        image.save(path, **options)
        [(_, [code], _)] = encode_files(digits.model(), [str(path)])
        found = client.json("/search?k=20", path.read_bytes())
        assert found["query"] is None
        assert pairs_of(found) == neighbours(digits, code, 20), name


def test_a_file_of_the_collection_is_recognised(tmp_path):
    page = Client(store_of(tmp_path, {f"{number}.bmp": photo(number, 40, 40) for number in range(4)}))
    own = file_of(page.store, 2)
    found = page.json("/search", own, kind="application/octet-stream")
    assert found["query"] == page.json("/search?row=2")["query"] and pairs_of(found)[0] == (0, 2)
    # The same pixels, hence the same code, and the same size, but another byte in a reserved field.
    found = page.json("/search", own[:6] + b"x" + own[7:])
    assert found["query"] is None and pairs_of(found)[0] == (0, 2)


def test_only_images_with_a_label(client, digits):
    label = item_of(digits, 3)[2]
    found = client.json(f"/search?row=4&label={label}&k=9")
    assert pairs_of(found) == neighbours(digits, code_of(digits, 4), 9, without=4, label=label)
    assert {item["label"] for item in found["neighbours"]} == {label}
    sent = client.json(f"/search?label={label}&k=9", file_of(digits, 4))
    assert pairs_of(sent) == neighbours(digits, code_of(digits, 4), 9, label=label)
    listed = client.json(f"/collection?label={label}&count=200")
    wanted = [row for row in range(IMAGES) if item_of(digits, row)[2] == label]
    assert [item["row"] for item in listed["items"]] == wanted
    assert (listed["found"], listed["images"]) == (len(wanted), IMAGES)
    assert client.json("/labels")["labels"] == sorted(digits.labels())
    assert client.error(404, "/search?row=4&label=cat") == "No image has the label 'cat'."
    assert client.error(404, "/collection?label=") == "No image has the label ''."


def test_labels_and_names_of_any_characters(tmp_path):
    labels = ["it's", "Äpfel & Birnen", '"<img src=x>', "a%' OR '1'='1"]
    page = Client(store_of(tmp_path, {f"{label}/{label}.png": photo(len(label), 20, 20) for label in labels}))
    items = page.json("/collection")["items"]
    assert [(item["label"], item["name"]) for item in items] == [(label, f"{label}.png") for label in labels]
    for row, label in enumerate(labels):
        found = page.json(f"/search?row=0&label={quote(label)}")
        assert [item["row"] for item in found["neighbours"]] == [row] * (row != 0)
        assert page.ask(f"/thumbnail?row={row}").status_code == 200


def test_thumbnails(tmp_path):
    images = {"large.jpg": photo(2, 900, 300), "small.png": photo(2, 8, 8), "tall.png": photo(2, 20, 3000)}
    page = Client(store_of(tmp_path, images))
    for row, (kind, wanted) in enumerate([("image/jpeg", (256, 85)), ("image/png", (8, 8)), ("image/jpeg", (2, 256))]):
        answer = page.ask(f"/thumbnail?row={row}")
        assert answer.status_code == 200 and answer.content_type == kind
        assert Image.open(io.BytesIO(answer.data)).size == wanted
    page.store.path_of("large.jpg").unlink()
    page.store.path_of("tall.png").write_bytes(b"no image")
    for row in (0, 2):
        assert page.error(404, f"/thumbnail?row={row}") == f"The file of image {row} can no longer be read."


def test_a_thumbnail_is_made_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    page, made, real = Client(store_of(tmp_path, {"a.png": photo(2, 20, 20)})), [], search.page.decode
    monkeypatch.setattr(search.page, "decode", lambda path, *a, **o: made.append(path) or real(path, *a, **o))
    first, second = (page.ask("/thumbnail?row=0").data for _ in range(2))
    assert first == second and len(made) == 1
    photo(3, 22, 20).save(page.store.path_of("a.png"))
    assert page.ask("/thumbnail?row=0").data != first and len(made) == 2


def test_the_images_of_the_collection_in_pages(client):
    rows = []
    for start in range(0, IMAGES, 50):
        part = client.json(f"/collection?start={start}&count=50")
        assert part["images"] == part["found"] == IMAGES and part["writable"] is False
        rows += [item["row"] for item in part["items"]]
    assert rows == list(range(IMAGES))
    assert len(client.json("/collection")["items"]) == 60


def test_an_image_that_was_removed(writable):
    assert writable.json("/search?row=5")
    gone = item_of(writable.store, 5)[1]
    assert Store(writable.store.uri).remove([gone])  # as another process does while the page is open
    for path in ("/search?row=5", "/thumbnail?row=5"):
        assert writable.error(404, path) == "There is no image 5; it may have been removed."
    found = writable.json("/search?row=6&k=200")  # the others keep their numbers
    assert found["query"]["row"] == 6 and {row for _, row in pairs_of(found)} == set(range(12)) - {5, 6}


def test_folders_are_not_shown(client):
    for path in ("/collection", "/search?row=3", "/search?row=99999", "/labels"):
        assert b"secret-folder" not in client.ask(path).data


def test_head_has_the_headers_of_get_and_no_body(client):
    for path in ("/", "/search?row=1", "/thumbnail?row=1", "/nothing"):
        answer, head = client.ask(path), client.ask(path, method="HEAD")
        assert (head.status_code, head.content_length, head.data) == (answer.status_code, answer.content_length, b"")


def test_the_openapi_file_describes_the_addresses_and_their_answers(client, digits, writable):
    description = client.json("/openapi.json")
    validate(description)
    documented = {(method.upper(), path) for path, methods in description["paths"].items() for method in methods}
    files = {("GET", path) for path in ("/", "/page.js", "/page.css", "/icon.svg", "/openapi.json")}
    routes = {(method, rule.rule) for rule in client.app.url_map.iter_rules() for method in rule.methods - {"HEAD"}}
    assert documented == routes - files

    other = encoded(photo(1, 30, 30))
    for page, status, address, body in (
        (client, 200, "/search?row=1&k=2&label=1", None),
        (client, 200, "/collection?start=1&count=2&label=1", None),
        (client, 200, "/labels", None),
        (client, 200, "/thumbnail?row=1", None),
        (client, 200, "/search?k=2&label=1", file_of(digits, 1)),
        (client, 200, "/search?k=2&label=1", other),
        (writable, 200, "/add?name=x.png", other),
        (client, 400, "/search?row=x&k=2&label=1", None),
        (client, 422, "/search?k=2&label=1", b"x"),
        (client, 403, "/add?name=x.png", other),
    ):
        answer, parts = page.ask(address, body), urlsplit(address)
        operation = description["paths"][parts.path]["get" if body is None else "post"]
        names = {one["$ref"].rpartition("/")[2] for one in operation.get("parameters", ())}
        assert names == set(dict(parse_qsl(parts.query))), address
        assert answer.status_code == status, answer.data
        refused = description["components"]["responses"]["Refused"]
        told = operation["responses"]["200"]["content"] if status == 200 else refused["content"]
        assert answer.content_type in told, address
        if answer.is_json:
            schema = told["application/json"]["schema"] | {"components": description["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer.json)


# ---- Adding ----


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_an_image_is_added_once(writable):
    store, image = writable.store, encoded(photo(4, 70, 50), "JPEG")
    added = writable.json("/add?name=../My%20cat%C3%A4.gif", image)
    name = added["image"]["name"]
    assert re.fullmatch(r"My_cata-[0-9a-f]{12}\.jpeg", name)
    assert added == {"image": {"row": 12, "name": name, "label": "added"}, "images": 13}
    assert (store.images / "added" / name).read_bytes() == image
    assert writable.json("/search", image)["query"] == added["image"]
    assert writable.json("/add?name=../My%20cat%C3%A4.gif", image) == added
    assert writable.json("/add?name=..%2F..", encoded(photo(5, 9, 9)))["image"]["name"].startswith("image-")
    assert len(files_below(store.images)) == len(store) == 14


def test_what_cannot_be_added_leaves_nothing(writable, client, digits, monkeypatch):
    image = encoded(photo(4, 70, 50))
    before = files_below(digits.images), len(digits)
    assert "--writable" in client.error(403, "/add", image)
    assert (files_below(digits.images), len(digits)) == before

    store = writable.store
    before = files_below(store.images)
    assert "not an image" in writable.error(422, "/add", b"hello")
    assert "cannot be read" in writable.error(422, "/add", image[: len(image) // 2])
    assert "another site" in writable.error(403, "/add", image, Origin="http://evil.example")
    assert "unknown" in writable.error(400, "/add?path=/etc/x", image)
    with locked(Path(store.uri) / ".lock"):  # as by another process
        assert writable.error(409, "/add", image).startswith("The store cannot be changed now")
    monkeypatch.setattr(Store, "add", lambda *a, **o: 1 / 0)
    writable.error(500, "/add", image)
    assert files_below(store.images) == before and len(store) == 12


# ---- Bad parameters, bad uploads ----


@pytest.mark.parametrize(
    "status, address, queries",
    [
        (
            400,
            "/search",
            ["", "row=", "row=-1", "row=+1", "row=1.0", "row=NaN", "row=%D9%A1", "row=1&row=2", "row=%ff"],
        ),
        (400, "/search", ["row=1&k=0", "row=1&k=201", "row=1&path=/etc/passwd", f"row={'9' * 5000}"]),
        (400, "/thumbnail", ["row=../../etc/passwd"]),
        (400, "/collection", ["start=-5", f"start={IMAGES}", "start=13&label=0", "count=201"]),
        (400, "/labels", ["x=1"]),
        (404, "/search", [f"row={IMAGES}"]),
        (404, "/thumbnail", ["row=999999999999999"]),
        *(
            (404, address, ["row=1"])
            for address in ("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/page.py", "/search/")
        ),
    ],
)
def test_bad_addresses(client, status, address, queries):
    for query in queries:
        sentence = client.error(status, f"{address}?{query}")
        assert sentence.endswith(".") and len(sentence) < 200


def png_that_claims(width, height):
    """A short PNG with a valid header of that size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 90) + b"IDAT" + bytes(94)


def test_bad_uploads(client, digits):
    good = file_of(digits, 0)
    jpeg = encoded(photo(1, 90, 90), "JPEG")
    for body, words in (
        (b"", "is empty"),
        (b"hello", "not an image in a format that can be read"),
        (good[: len(good) // 2], "cannot be read"),
        (jpeg[: len(jpeg) // 2], "cannot be read"),
        (png_that_claims(100_000, 100_000), "too many pixels"),
        (png_that_claims(7_072, 7_072), "7,072 × 7,072 pixels are more than 50,000,000"),
        (encoded(Image.new("F", (9, 9)), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format that can be read"),
        (encoded(photo(1, 9, 9), "TGA"), "not an image in a format that can be read"),
    ):
        error = client.error(422, "/search", body)
        assert words in error and "object at 0x" not in error
    assert client.error(415, "/search", good, kind="text/plain")
    assert client.error(415, "/search", good, kind="multipart/form-data; boundary=x")
    assert client.error(400, "/search?k=x", good)
    assert client.error(400, "/search?row=1", good)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_are_counted_before_they_are_decoded(digits, monkeypatch):
    image = encoded(photo(1, 101, 100))
    page = Client(digits, most_pixels=10_100)
    assert page.json("/search", image)
    assert page.json("/search", encoded(photo(1, 202, 200), "JPEG"))  # read at half its size
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert "pixels" in Client(digits, most_pixels=10_099).error(422, "/search", image)


def test_at_most_two_images_are_decoded_and_one_is_encoded_at_a_time(client, digits, monkeypatch):
    image, lock, running, most = file_of(digits, 0), threading.Lock(), Counter(), Counter()

    def counted(name, real):
        def call(*arguments, **options):
            with lock:
                running[name] += 1
                most[name] = max(most[name], running[name])
            time.sleep(0.02)
            with lock:
                running[name] -= 1
            return real(*arguments, **options)

        return call

    def statuses():
        with ThreadPoolExecutor(8) as executor:
            return set(executor.map(lambda _: client.ask("/search", image).status_code, range(12)))

    monkeypatch.setattr(search.page, "prepare_image", counted("decoded", search.page.prepare_image))
    monkeypatch.setattr(type(digits.model()), "codes", counted("encoded", type(digits.model()).codes))
    assert statuses() == {200} and most == {"decoded": 2, "encoded": 1}
    monkeypatch.setattr(search.page, "_WAIT_SECONDS", 0.0)
    assert statuses() == {200, 503}


# ---- The command ----


def test_the_command_serves_images_that_were_moved(writable, tmp_path):
    store, image, moved = writable.store, file_of(writable.store, 4), tmp_path / "moved"
    store.images.rename(moved)
    # The second line says whether the process has imported torch.
    code = "import sys; from search.__main__ import main; s = main(); print('torch' in sys.modules); sys.exit(s)"
    flags = ["serve", store.uri, "--port", "0", "--images-folder", str(moved), "--writable"]
    process = subprocess.Popen([sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, text=True)

    def ask(path, body=None):
        return urlopen(Request(address + path, body, {"Content-Type": "image/png"}), timeout=60)

    try:
        line = process.stdout.readline()
        address = re.fullmatch(r"12 images: (http://127.0.0.1:\d+)/ \(Ctrl\+C stops the server\)\n", line)[1]
        with ask("/thumbnail?row=4") as answer:
            assert Image.open(answer).size == (64, 64)
        with ask("/search", image) as answer:
            assert json.load(answer)["query"]["row"] == 4
        new = encoded(photo(1, 40, 40))
        with ask("/add", new) as answer:
            assert (moved / "added" / json.load(answer)["image"]["name"]).read_bytes() == new
        process.send_signal(signal.SIGINT)
        assert (process.communicate(timeout=60)[0], process.returncode) == ("False\n", 0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["STORE", "--images-folder", "nowhere"], "--images-folder nowhere: there is no such folder."),
        (["nowhere"], "nowhere: there is no store"),
        (["STORE", "--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["STORE", "--port", "70000"], "--port"),
    ],
)
def test_the_command_names_what_is_wrong(digits, capsys, flags, words):
    assert main(["serve", *(digits.uri if flag == "STORE" else flag for flag in flags)]) == 2
    assert words in capsys.readouterr().err
