"""The local search page: its answers, what it refuses, 10,000 malformed requests, and a real browser."""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import search.page
from modules import AlexNetHash
from search.__main__ import main as search_command
from search.encode import encode_files
from search.index import Index
from search.model import TrainedModel, fingerprint
from search.page import make_server
from search.server import Limits, LocalServer
from tests.image_trees import photo
from tests.search.browser import CHROMIUM, Browser
from tests.small_networks import SmallImageNet
from utils.errors import UserError

BITS, SIZE, IMAGES = 32, 64, 130


def make_model(seed=1):
    torch.manual_seed(seed)
    model = SmallImageNet("alexnet", BITS).requires_grad_(False).eval()
    with torch.no_grad():  # a bit for each side of the mean: random weights alone give all digits nearly one code
        model.hash_layer[0].weight *= 50
    settings = {"backbone": "alexnet", "dataset": "digits", "method": "main_mmasia", "image_size": SIZE}
    return TrainedModel(model, BITS, SIZE, "digits", settings, fingerprint(model.state_dict()))


@pytest.fixture(scope="module")
def trained():
    return make_model()


@pytest.fixture(scope="module")
def index(tmp_path_factory, trained):
    """Digits as PNG, one folder per class."""
    folder = tmp_path_factory.mktemp("secret-folder") / "digits"
    digits = load_digits()
    names = []
    for row in range(IMAGES):
        label = str(digits.target[row])
        (folder / label).mkdir(parents=True, exist_ok=True)
        names.append(f"{label}/{row:04}.png")
        pixels = (digits.images[row] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(folder / names[-1])
    codes = np.concatenate([codes for _, codes in encode_files(trained, [str(folder / name) for name in names])])
    assert len(np.unique(codes, axis=0)) > IMAGES / 2
    labels = [name[0] for name in names]
    return Index(codes, names, labels, BITS, trained.settings, trained.fingerprint, images=folder)


@contextmanager
def serving(index, trained, **options):
    server = make_server(index, trained, "127.0.0.1", 0, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def server(index, trained):
    with serving(index, trained) as server:
        yield server


def ask(server, path, body=None, method=None, **headers):
    """(status, headers, body) of one request; a body of bytes is sent as a PNG by default."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    if body is not None:
        headers = {"Content-Type": "image/png"} | headers
    headers = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def ask_json(server, path, body=None, status=200, **options):
    got, headers, content = ask(server, path, body, **options)
    assert got == status, content
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    return json.loads(content)


def send_raw(server, data, half_close=True, seconds=30):
    """What the server answers to these bytes."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=seconds) as connection:
        return exchange(connection, data, half_close)


def exchange(connection, data, half_close=True):
    received = b""
    try:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            received += part
    except ConnectionError:
        pass
    return received


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def naive_neighbours(index, code, k, without=None):
    """(distance, row) ascending, bit by bit."""
    bits = np.unpackbits(index.codes, axis=1)[:, :BITS]
    own = np.unpackbits(code)[:BITS]
    pairs = sorted((int((other != own).sum()), row) for row, other in enumerate(bits) if row != without)
    return pairs[:k]


def pairs_of(found):
    return [(item["distance"], item["row"]) for item in found["neighbours"]]


# ---- Answers ----


@pytest.mark.parametrize("row", [0, 7, IMAGES - 1])
def test_neighbours_of_an_image_of_the_index(server, index, row):
    found = ask_json(server, f"/search?row={row}&k=12")
    assert pairs_of(found) == naive_neighbours(index, index.codes[row], 12, without=row)
    assert found["query"] == {"row": row, "name": f"{row:04}.png", "labels": [index.labels[row]]}
    assert found["code_length"] == BITS and found["images"] == IMAGES
    for item in found["neighbours"]:
        assert item["labels"] == [index.labels[item["row"]]] and item["name"] == f"{item['row']:04}.png"


def test_ten_neighbours_by_default_and_never_more_than_exist(server):
    assert len(ask_json(server, "/search?row=3")["neighbours"]) == 10
    assert len(ask_json(server, "/search?row=3&k=200")["neighbours"]) == IMAGES - 1


def test_an_image_with_many_twins_is_not_its_own_neighbour(trained, index):
    codes = np.zeros_like(index.codes)
    twins = Index(codes, index.names, None, BITS, index.settings, index.fingerprint, images=index.images)
    with serving(twins, trained) as server:
        found = ask_json(server, f"/search?row={IMAGES - 1}&k=5")
    assert pairs_of(found) == [(0, row) for row in range(5)]
    assert found["query"]["labels"] == []


def test_an_image_that_is_sent_gets_the_code_of_the_encoding(server, index, trained, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, options in (
        ("upright.png", photo(3, 90, 70), {}),
        ("turned.jpg", photo(4, 300, 200), {"exif": exif}),
        ("grey.png", photo(5, 64, 64).convert("L"), {}),
        ("palette.gif", photo(6, 80, 64).convert("P"), {}),
        ("small.bmp", photo(7, 9, 11), {}),
    ):
        path = tmp_path / name
        image.save(path, **options)
        [(_, code)] = encode_files(trained, [str(path)])
        found = ask_json(server, "/search?k=20", path.read_bytes())
        assert found["query"] is None
        assert pairs_of(found) == naive_neighbours(index, code, 20), name


def test_a_file_of_the_index_finds_itself(server, index):
    found = ask_json(server, "/search?k=1", index.path_of(17).read_bytes(), Content_Type="application/octet-stream")
    assert pairs_of(found)[0][0] == 0


def test_thumbnails(trained, tmp_path):
    sizes = {"large.jpg": (900, 300), "tall.png": (20, 3000), "small.png": (8, 8), "gone.png": None, "bad.png": None}
    for name, size in sizes.items():
        if size:
            photo(2, *size).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no image")
    codes = np.arange(4 * len(sizes), dtype=np.uint8).reshape(-1, 4)
    index = Index(codes, list(sizes), None, BITS, {}, trained.fingerprint, images=tmp_path)
    with serving(index, trained) as server:
        for row, (kind, wanted) in enumerate(
            [("image/jpeg", (256, 85)), ("image/jpeg", (2, 256)), ("image/png", (8, 8))]
        ):
            status, headers, body = ask(server, f"/thumbnail?row={row}")
            assert status == 200 and headers["Content-Type"] == kind
            assert Image.open(io.BytesIO(body)).size == wanted
        assert Image.open(io.BytesIO(body)).tobytes() == Image.open(tmp_path / "small.png").tobytes()
        for row in (3, 4):
            assert "can no longer be read" in ask_json(server, f"/thumbnail?row={row}", status=404)["error"]


def test_a_thumbnail_is_made_once(index, trained, monkeypatch):
    made = []
    real = search.page.decode
    monkeypatch.setattr(search.page, "decode", lambda path, *a, **o: made.append(path) or real(path, *a, **o))
    with serving(index, trained) as server:
        first, second = (ask(server, "/thumbnail?row=9")[2] for _ in range(2))
    assert first == second and made == [index.path_of(9)]


def test_the_images_of_the_index_in_pages(server, index):
    rows = []
    for start in range(0, IMAGES, 50):
        page = ask_json(server, f"/collection?start={start}&count=50")
        assert page["images"] == IMAGES and page["code_length"] == BITS and page["uploads"] is True
        rows += [item["row"] for item in page["items"]]
    assert rows == list(range(IMAGES))
    assert len(ask_json(server, "/collection")["items"]) == 60


def test_folders_are_not_shown(server):
    for path in ("/collection", "/search?row=3", "/search?row=99999"):
        assert b"secret-folder" not in ask(server, path)[2]


def test_names_of_any_bytes(trained, tmp_path):
    names = [os.fsdecode(name) for name in (b"\xff.png", b"<img src=x onerror=alert(1)>.png", "Äpfel \n.png".encode())]
    for seed, name in enumerate(names):
        photo(seed, 20, 20).save(tmp_path / name)
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    index = Index(codes, names, names, BITS, {}, trained.fingerprint, images=tmp_path)
    with serving(index, trained) as server:
        items = ask_json(server, "/collection")["items"]
        assert [item["name"] for item in items] == names and [item["labels"] for item in items] == [[n] for n in names]
        for row in range(3):
            assert ask(server, f"/thumbnail?row={row}")[0] == 200


def test_an_ipv6_address(index):
    try:
        server = make_server(index, None, "::1", 0)
    except UserError:
        pytest.skip("this machine has no IPv6")
    with server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert server.address == f"http://[::1]:{server.server_port}/"
        with urlopen(server.address, timeout=60) as answer:
            assert answer.status == 200
        thread.join()


def test_an_index_without_a_model_can_be_searched(index):
    with serving(index, None) as server:
        assert ask_json(server, "/collection")["uploads"] is False
        assert len(ask_json(server, "/search?row=1")["neighbours"]) == 10
        assert "without a model" in ask_json(server, "/search", b"x", status=409)["error"]


def test_head_has_the_headers_of_get_and_no_body(server):
    for path in ("/", "/search?row=1", "/thumbnail?row=1", "/nothing"):
        status, headers, _ = ask(server, path)
        head_status, head_headers, body = ask(server, path, method="HEAD")
        assert (head_status, head_headers["Content-Length"], body) == (status, headers["Content-Length"], b"")


def test_many_at_once_get_their_own_answers(server, index):
    def once(row):
        if row % 3:
            return row, ask_json(server, f"/search?row={row}&k=9"), naive_neighbours(index, index.codes[row], 9, row)
        found = ask_json(server, "/search?k=9", index.path_of(row).read_bytes())
        return row, found, naive_neighbours(index, index.codes[row], 9)

    with ThreadPoolExecutor(16) as executor:
        for row, found, wanted in executor.map(once, range(90)):
            assert pairs_of(found) == wanted, row


# ---- What a browser may do with it ----


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/page.css", "/icon.svg", "/search?row=1", "/thumbnail?row=1", "/no"]
)
def test_every_answer_has_the_security_headers(server, path):
    _, headers, _ = ask(server, path)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_the_page_loads_nothing_from_other_sites(server):
    for path in ("/", "/page.js", "/page.css"):
        text = ask(server, path)[2].decode()
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.", text.replace("http://www.w3.org", ""))
        assert "@import" not in text and "style=" not in text and "onclick" not in text


def test_only_own_names_of_the_host_are_accepted(server):
    port = server.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}", f"192.168.1.5:{port}"):
        assert ask(server, "/", Host=host)[0] == 200, host
    for host in (
        f"evil.example:{port}",
        f"localhost.evil.example:{port}",
        f"127.0.0.1.evil.example:{port}",
        f"user@localhost:{port}",
        f"127.0.0.1:{port}:{port}",
        f"[::1:{port}",
        "192.168.1.5",
        "192.168.1.5:1",
        "",
    ):
        assert "Open this page as http://127.0.0.1:" in ask_json(server, "/", status=400, Host=host)["error"], host
    assert b" 400 " in send_raw(server, b"GET / HTTP/1.0\r\n\r\n")
    twice = f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\nHost: evil.example\r\n\r\n"
    assert b" 400 " in send_raw(server, twice.encode())


def test_a_tunnel_and_a_proxy_show_the_page(index, trained):
    """`ssh -L 9000:127.0.0.1:PORT`, and a proxy with encryption and a name of its own."""
    image = index.path_of(0).read_bytes()
    with serving(index, trained, allowed_hosts=["Images.example.org"]) as server:
        for host in ("localhost:9000", "127.0.0.1:9000", "[::1]:9000", "127.0.0.1"):
            assert ask(server, "/search", image, Host=host, Origin=f"http://{host}")[0] == 200, host
        for host in ("images.example.org", "images.example.org:8443", f"127.0.0.1:{server.server_port}"):
            assert ask(server, "/search", image, Host=host, Origin="https://images.example.org")[0] == 200, host
        answer = ask_json(server, "/search", image, status=403, Host="localhost:9000", Origin="http://localhost:3000")
        assert "another site" in answer["error"]
        answer = ask_json(server, "/", status=400, Host="other.example.org")
        assert "--allow-host NAME" in answer["error"]


def test_a_page_of_another_site_cannot_send_images(server, index):
    port, image = server.server_port, index.path_of(0).read_bytes()
    for headers in (
        {"Origin": f"http://127.0.0.1:{port}"},
        {"Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"},
        {},
    ):
        assert ask(server, "/search", image, **headers)[0] == 200
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"ftp://127.0.0.1:{port}"},
        {"Origin": f"http://localhost:{port}"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        assert "another site" in ask_json(server, "/search", image, status=403, **headers)["error"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "NONSENSE"])
def test_other_methods(server, method):
    status, headers, body = ask(server, "/", method=method)
    assert status == 405 and headers["Allow"] == "GET, HEAD, POST" and json.loads(body)["error"]
    assert ask(server, "/", b"x")[0] == 405


# ---- Bad parameters, bad uploads ----


@pytest.mark.parametrize(
    "path, status",
    [
        ("/search", 400),
        ("/search?row=", 400),
        ("/search?row=-1", 400),
        ("/search?row=+1", 400),
        ("/search?row=1.0", 400),
        ("/search?row=NaN", 400),
        ("/search?row=%D9%A1", 400),
        ("/search?row=1e3", 400),
        ("/search?row=1&row=2", 400),
        ("/search?row=1&k=0", 400),
        ("/search?row=1&k=201", 400),
        ("/search?row=1&path=/etc/passwd", 400),
        ("/search?row=%ff", 400),
        ("/search?row=1&" + "&".join(f"a{i}=1" for i in range(50)), 400),
        (f"/search?row={'9' * 5000}", 400),
        (f"/search?row={IMAGES}", 404),
        ("/thumbnail?row=999999999999999", 404),
        ("/thumbnail?row=../../etc/passwd", 400),
        ("/collection?start=-5", 400),
        (f"/collection?start={IMAGES}", 400),
        ("/collection?count=201", 400),
        ("/../../etc/passwd", 404),
        ("/..%2f..%2fetc/passwd", 404),
        ("/page.py", 404),
        ("//evil.example/", 404),
        ("/" + "a" * 70_000, 414),
    ],
)
def test_bad_addresses(server, path, status):
    sentence = ask_json(server, path, status=status)["error"]
    assert sentence.endswith(".") and len(sentence) < 200


def png_that_claims(width, height):
    """A short PNG with a valid header of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 90)
        + b"IDAT"
        + bytes(94)
    )


def test_bad_uploads(server, index):
    good = index.path_of(0).read_bytes()
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
        error = ask_json(server, "/search", body, status=422)["error"]
        assert words in error and "object at 0x" not in error
    assert ask_json(server, "/search", good, status=415, Content_Type="text/html")["error"]
    assert ask_json(server, "/search", good, status=415, Content_Type="multipart/form-data; boundary=x")["error"]
    assert ask_json(server, "/search?k=x", good, status=400)["error"]
    assert ask_json(server, "/search?row=1", good, status=400)["error"]


def test_pixels_are_counted_before_they_are_decoded(index, trained, monkeypatch):
    image = encoded(photo(1, 101, 100))
    with serving(index, trained, most_pixels=10_100) as server:
        assert ask(server, "/search", image)[0] == 200
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with serving(index, trained, most_pixels=10_099) as server:
        assert "pixels" in ask_json(server, "/search", image, status=422)["error"]


def post_head(server, *lines):
    head = ["POST /search HTTP/1.1", f"Host: 127.0.0.1:{server.server_port}", "Content-Type: image/png", *lines]
    return "\r\n".join([*head, "", ""]).encode()


def test_a_large_body_is_refused_before_it_is_read(server):
    answer = send_raw(server, post_head(server, "Content-Length: 20000001"), half_close=False)
    assert b" 413 " in answer and b"larger than 20 MB" in answer


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Content-Length: -1"],
        ["Content-Length: 1e3"],
        ["Content-Length: " + "9" * 30],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
    ],
)
def test_the_length_must_be_stated(server, lines):
    assert b" 411 " in send_raw(server, post_head(server, *lines) + b"hello", half_close=False)


def test_a_refusal_arrives_though_the_sender_has_not_read_it_yet(index, trained):
    with serving(index, trained, limits=Limits(body_bytes=1000)) as server:
        assert ask_json(server, "/search", bytes(15_000_000), status=413)["error"]
        assert b" 400 " in send_raw(server, post_head(server, "Content-Length: 900") + b"cut")


def test_an_upload_is_never_written_to_disk(server, index):
    written, watching = [], threading.Event()

    def watch(event, arguments):
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if watching.is_set() and event == "open" and isinstance(arguments[2], int) and arguments[2] & writing:
            written.append(arguments[0])

    sys.addaudithook(watch)
    watching.set()
    try:
        with open(os.devnull, "w"):
            pass
        ask_json(server, "/search", encoded(photo(1, 2000, 1500), "JPEG"))
    finally:
        watching.clear()
    assert written == [os.devnull]  # the watch works, and has seen nothing else


# ---- Slow and many clients ----


def dribble(connection, byte=b"a"):
    """Send single bytes until the server closes the connection; returns its answer."""
    connection.settimeout(0.02)
    for _ in range(1000):
        try:
            connection.sendall(byte)
            received = connection.recv(1 << 16)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
        return received
    pytest.fail("the server waits for ever")


def test_a_client_that_sends_a_byte_now_and_then_is_dropped(index, trained):
    with serving(index, trained, limits=Limits(header_seconds=0.3, body_seconds=0.3)) as server:
        address = ("127.0.0.1", server.server_port)
        for start in (b"", b"GET / HTTP/1.1\r\nX: "):
            with socket.create_connection(address) as connection:
                connection.sendall(start)
                assert dribble(connection) == b""
        with socket.create_connection(address) as connection:
            connection.sendall(post_head(server, "Content-Length: 100000"))
            assert b" 408 " in dribble(connection)
        assert ask(server, "/")[0] == 200


def test_requests_at_once_are_bounded(index, trained):
    with serving(index, trained, limits=Limits(requests=2, wait_seconds=0.05)) as server:
        address = ("127.0.0.1", server.server_port)
        with socket.create_connection(address), socket.create_connection(address):
            assert "Too many requests" in ask_json(server, "/", status=503)["error"]
        end = time.monotonic() + 30
        while ask(server, "/")[0] != 200:
            assert time.monotonic() < end


def test_an_internal_error_is_answered_too(index, trained, monkeypatch, caplog):
    with serving(index, trained) as server:
        monkeypatch.setattr(Index, "search", lambda *a, **o: 1 / 0)
        assert "its terminal shows the details" in ask_json(server, "/search?row=1", status=500)["error"]
        monkeypatch.undo()
        assert ask(server, "/search?row=1")[0] == 200
    assert "ZeroDivisionError" in caplog.text


def test_what_cannot_be_served_is_refused(index, trained, server):
    with pytest.raises(UserError, match="another model"):
        make_server(index, make_model(seed=2), "127.0.0.1", 0)
    with pytest.raises(UserError, match=r"--host 127.0.0.1 --port \d+: cannot listen there"):
        make_server(index, trained, "127.0.0.1", server.server_port)
    with pytest.raises(UserError, match="--port 70000"):
        make_server(index, trained, "127.0.0.1", 70_000)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_the_command_ends_by_a_signal(index, trained, tmp_path, monkeypatch, number, status):
    index_without_model(index).save(tmp_path / "index")
    monkeypatch.setattr(Index, "model", lambda self, run: trained)
    signals = iter([number])  # one, when it serves

    class Signalling(LocalServer):  # not LocalServer itself: the module's server polls too, and would send it too early
        def service_actions(self):
            for one in signals:
                os.kill(os.getpid(), one)

    monkeypatch.setattr(search.page, "LocalServer", Signalling)
    before = threading.active_count()
    assert search_command(["serve", str(tmp_path / "index"), "--port", "0"]) == status
    assert threading.active_count() <= before


def index_without_model(index):
    """A copy that does not share the module's folder."""
    return Index(index.codes, index.names, index.labels, BITS, index.settings, index.fingerprint, images=index.images)


def test_the_command_serves_a_real_network(index, tmp_path):
    """AlexNet, read from the index, in a process of its own; the images were moved."""
    torch.manual_seed(0)
    model = AlexNetHash(BITS, weights=None).requires_grad_(False).eval()
    settings = {"backbone": "alexnet", "code_length": BITS, "image_size": SIZE, "dataset": "folder"}
    trained = TrainedModel(model, BITS, SIZE, "folder", settings, fingerprint(model.state_dict()))
    moved = Index(index.codes, index.names, index.labels, BITS, trained.settings, trained.fingerprint, images=tmp_path)
    moved.save(tmp_path / "index", trained)
    command = [sys.executable, "-m", "search", "serve", str(tmp_path / "index"), "--port", "0"]
    process = subprocess.Popen([*command, "--images", str(index.images)], stdout=subprocess.PIPE, text=True)
    try:
        address = re.fullmatch(
            r"130 images: (http://127.0.0.1:\d+)/ \(Ctrl\+C stops the server\)\n", process.stdout.readline()
        )[1]
        with urlopen(f"{address}/thumbnail?row=4", timeout=60) as answer:
            assert Image.open(answer).size == (SIZE, SIZE)
        request = Request(f"{address}/search", index.path_of(4).read_bytes(), {"Content-Type": "image/png"})
        with urlopen(request, timeout=60) as answer:
            assert len(json.load(answer)["neighbours"]) == 10
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--images-folder", "nowhere"], "--images-folder nowhere: there is no such folder."),
        (["--run", "nowhere"], "nowhere"),
        ([], "has no model.pt"),
    ],
)
def test_the_command_names_what_is_wrong(index, tmp_path, capsys, flags, words):
    index_without_model(index).save(tmp_path / "index")
    assert search_command(["serve", str(tmp_path / "index"), *flags]) == 2
    assert words in capsys.readouterr().err


# ---- 10,000 bad queries ----

_BAD_NUMBERS = (
    "-1",
    "NaN",
    "inf",
    "1e9",
    "9" * 40,
    "0x10",
    "",
    "%00",
    "٣",
    "1;2",
    "../../etc/passwd",
    "%ff",
    "500",
    "0",
)
_BAD_PATHS = ("/../../etc/passwd", "/%2e%2e/x", "//x/y", "*", "x", "", "/search/", "/thumbnail/1", "/" + "a" * 66_000)
_BAD_METHODS = ("PUT", "get", "FOO", "", "G" * 300, "OPTIONS", "GET GET", "\0")
_BAD_VERSIONS = ("HTTP/2.0", "HTTP/9.9.9", "HTTP/x", "", "FTP/1", "HTTP/1.1 x")
_BAD_KINDS = ("text/html", "multipart/form-data", ";;;", "\xff", "")
_BAD_LENGTHS = (1_000_000, 10**9, -5, "x", "", 10**40, "1, 1")
_BAD_HEADERS = ("no colon", ": no name", "Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Host: twice")
_PARAMETERS = {"/search": ("row", "k"), "/thumbnail": ("row",), "/collection": ("start", "count")}


def bad_query(chance: random.Random, host: str, image: bytes) -> bytes:
    """Bytes of a request in which any part may be wrong; about one in four is a good one."""

    def part(good, *bad, share=0.08):
        return chance.choice(bad) if bad and chance.random() < share else good

    if chance.random() < 0.08:
        return chance.randbytes(chance.randrange(400))
    path = part(chance.choice(("/", "/search", "/search", "/thumbnail", "/collection", "/page.js")), *_BAD_PATHS)
    method = "POST" if path == "/search" and chance.random() < 0.5 else chance.choice(("GET", "GET", "HEAD"))
    wanted = ("k",) if method == "POST" else _PARAMETERS.get(path, ())
    names = [part(name, "x", "", "row[]", "row", share=0.04) for name in wanted if chance.random() < 0.95]
    query = "&".join(f"{name}={part(str(chance.randrange(1, IMAGES)), *_BAD_NUMBERS)}" for name in names)
    target = f"{path}?{query}" if query else path
    lines = [f"{part(method, *_BAD_METHODS)} {target} {part('HTTP/1.1', *_BAD_VERSIONS, share=0.05)}"]
    lines += [f"Host: {part(host, 'evil.example', '', share=0.05)}"] * part(1, 0, 2, share=0.04)
    lines += part([], *([header] for header in _BAD_HEADERS), ["X: " + "a" * 70_000], ["X: 1"] * 150)
    body = b""
    if method == "POST":
        body = part(
            image, image[:200], chance.randbytes(300), b"", bytes(5000), png_that_claims(60_000, 2000), share=0.3
        )
        lines += [
            f"Content-Type: {part('image/png', *_BAD_KINDS)}",
            f"Content-Length: {part(len(body), *_BAD_LENGTHS)}",
        ]
        lines += part([], ["Transfer-Encoding: chunked"], ["Expect: 100-continue"], share=0.04)
    data = "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body
    place = chance.randrange(len(data))
    return part(data, data[:place], data[:place] + chance.randbytes(1) + data[place + 1 :])


def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_it_still_answers_after_ten_thousand_malformed_requests(index, trained, caplog):
    queries, threads = 10_000, 4
    image = index.path_of(0).read_bytes()
    with serving(index, trained) as server:
        before = threading.active_count(), open_files()
        wanted = ask_json(server, "/search?row=5"), ask_json(server, "/search", image), ask(server, "/")[2]
        address, host = ("127.0.0.1", server.server_port), f"127.0.0.1:{server.server_port}"

        def attack(number):
            chance, seen = random.Random(f"page {number}"), Counter()
            for _ in range(queries // threads):
                data, hang_up = bad_query(chance, host, image), chance.random() < 0.05
                with socket.create_connection(address, timeout=60) as connection:
                    if hang_up:  # with bytes unread, so that the connection is reset
                        connection.sendall(data)
                        seen["hung up"] += 1
                        continue
                    answer = exchange(connection, data)
                status = re.match(rb"HTTP/1\.0 (\d{3}) ", answer)
                assert status or not answer, answer[:100]
                seen[int(status[1]) if status else "closed"] += 1
            return seen

        with ThreadPoolExecutor(threads) as executor:
            seen = sum(executor.map(attack, range(threads)), Counter())
        assert seen.total() == queries
        assert not {500, 503} & seen.keys(), seen
        assert {200, 400, 403, 404, 405, 411, 413, 414, 415, 422, 431, 505} <= seen.keys(), seen
        assert queries / 10 < seen[200] < queries / 2, seen
        assert ask_json(server, "/search?row=5") == wanted[0]
        assert ask_json(server, "/search", image) == wanted[1]
        assert ask(server, "/")[2] == wanted[2]
        end = time.monotonic() + 20
        while threading.active_count() > before[0] or open_files() > before[1]:
            assert time.monotonic() < end, (threading.active_count(), open_files(), before)
            time.sleep(0.05)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# ---- A browser ----

FOUND = "document.querySelectorAll('#neighbours .tile').length"
READY = f"{FOUND} && !document.querySelector('#results[aria-busy]')"
WATCH_LAYOUT = """
    window.shift = 0, window.moved = [];
    new PerformanceObserver(list => list.getEntries().forEach(entry => {
        shift += entry.value;
        moved.push(...entry.sources.map(source => source.node?.id || source.node?.className));
    }))
        .observe({type: 'layout-shift', buffered: true});
"""


def neighbours_shown(browser):
    """(distance, row) of each tile."""
    return [
        (int(re.match(r"(\d+) of 32 bits differ$", text)[1]), int(row))
        for text, row in browser.evaluate(
            "[...document.querySelectorAll('#neighbours .tile')]"
            ".map(tile => [tile.querySelector('.distance').innerText, tile.dataset.row])"
        )
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_in_a_browser(server, index, trained, tmp_path):
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    address = f"http://127.0.0.1:{server.server_port}/"
    browser = Browser(tmp_path / "profile")
    try:
        browser.command("Page.addScriptToEvaluateOnNewDocument", source=WATCH_LAYOUT)
        browser.screen(1200, 900)
        browser.open(address)
        browser.wait("document.querySelectorAll('#items .tile').length === 60")
        assert browser.evaluate("document.querySelector('#about').innerText") == "130 images in 32 bits"

        # A click on an image of the index.
        browser.click("#items .tile[data-row='7']")
        browser.wait(READY)
        wanted = naive_neighbours(index, index.codes[7], 10, without=7)
        assert neighbours_shown(browser) == wanted
        same = sum(index.labels[row] == index.labels[7] for _, row in wanted)
        status = browser.evaluate("document.querySelector('#status').innerText")
        assert status == f"The 10 nearest images of 130. {same} of 10 share a label with the query."
        assert browser.evaluate("location.search") == "?row=7"
        assert browser.evaluate("document.activeElement.id") == "results-title"

        # A neighbour of a neighbour, another number of neighbours, and back.
        browser.click("#neighbours .tile")
        browser.wait(f"location.search === '?row={wanted[0][1]}' && {READY}")
        browser.evaluate(
            "(k => { k.value = '20'; k.dispatchEvent(new Event('change')); })(document.querySelector('#k'))"
        )
        browser.wait(f"{FOUND} === 20")
        browser.evaluate("history.go(-2)")
        browser.wait(f"location.search === '?row=7' && {FOUND} === 10 && {READY}")
        assert neighbours_shown(browser) == wanted

        # The next page of images, and a saved address.
        browser.click("#next")
        browser.wait("document.querySelector('#items .tile').dataset.row === '60'")
        assert browser.evaluate("document.querySelector('#range').innerText") == "61 to 120 of 130"
        browser.open(f"{address}?row=12&k=20&start=60")
        browser.wait(f"{FOUND} === 20")
        assert neighbours_shown(browser) == naive_neighbours(index, index.codes[12], 20, without=12)

        # An own image, chosen.
        browser.open(address)
        browser.wait("document.querySelectorAll('#items .tile').length === 60")
        own = tmp_path / "own photo.png"
        photo(3, 90, 70).save(own)
        [(_, code)] = encode_files(trained, [str(own)])
        browser.choose_file("#file", own)
        browser.wait(READY)
        assert neighbours_shown(browser) == naive_neighbours(index, code, 10)
        browser.wait("document.querySelector('#query-image').naturalWidth === 90")
        assert browser.evaluate("document.querySelector('#query-image').alt") == "Your image own photo.png"

        # The same, dropped.
        browser.open(address)
        browser.wait("document.querySelectorAll('#items .tile').length === 60")
        browser.evaluate(
            """(async () => {
                const bytes = await (await fetch('/thumbnail?row=3')).blob();
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], 'dropped.png', {type: 'image/png'}));
                document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}));
            })()"""
        )
        browser.wait(READY)
        assert neighbours_shown(browser) == naive_neighbours(index, index.codes[3], 10)

        # The keyboard alone: from the top to the second image of the index.
        browser.open(address)
        browser.wait("document.querySelectorAll('#items .tile').length === 60")
        visited = []
        for _ in range(30):
            browser.press("Tab")
            visited.append(browser.evaluate("document.activeElement.id || document.activeElement.innerText"))
            assert browser.evaluate(
                "(e => { const s = getComputedStyle(e.id === 'file' ? e.nextElementSibling : e);"
                " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0; })(document.activeElement)"
            ), visited
            if browser.evaluate("document.activeElement.matches('#items .tile')"):
                break
        assert {"Skip to the results", "file", "row", "k", "next"} <= set(visited), visited
        browser.press("ArrowRight")
        browser.press("Enter")
        browser.wait(f"location.search === '?row=1' && {READY}")
        assert neighbours_shown(browser) == naive_neighbours(index, index.codes[1], 10, without=1)

        # A number typed, Enter.
        browser.evaluate("document.querySelector('#row').focus()")
        browser.command("Input.insertText", text="25")
        browser.press("Enter")
        browser.wait(f"location.search === '?row=25' && {READY}")

        # Every image has a text, every control has a label, and nothing is wider than a phone.
        assert browser.evaluate("[...document.images].filter(i => !i.hidden && !i.alt).length") == 0
        assert (
            browser.evaluate("[...document.querySelectorAll('input,select')].filter(e => !e.labels.length).length") == 0
        )
        for width, dark in ((390, False), (390, True), (320, False), (1200, True)):
            browser.screen(width, 844, dark)
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            dark_page = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 100")
            assert dark_page is dark
        for width in (390, 1200):
            browser.screen(width, 844)
            browser.open("about:blank")
            browser.open(f"{address}?row=12")
            browser.wait(f"{READY} && document.querySelectorAll('#items .tile').length === 60")
            assert browser.evaluate("shift") < 0.1, (width, browser.evaluate("moved"))  # what Web Vitals call good
        assert browser.problems == []

        # A damaged file: an error message, and the page still works.
        damaged = tmp_path / "damaged.png"
        damaged.write_bytes(own.read_bytes()[:1000])
        browser.choose_file("#file", damaged)
        browser.wait("!document.querySelector('#problem').hidden")
        assert "cannot be read" in browser.evaluate("document.querySelector('#problem').innerText")
        assert browser.evaluate(FOUND) == 0
        browser.click("#items .tile[data-row='2']")
        browser.wait(f"{READY} && document.querySelector('#problem').hidden")
        # The browser reports the refusal, and nothing else.
        assert [problem for problem in browser.problems if "422 (Unprocessable" not in problem] == []
    finally:
        browser.close()
