"""The server of the search page: other sites, slow and many clients, and 5,000 malformed requests."""

import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

import search.server
from search.server import LocalServer, protected_app, serve
from search.store import Store
from tests.image_trees import photo
from tests.search.digits_page import (
    IMAGES,
    Client,
    code_of,
    encoded,
    fetch,
    file_of,
    neighbours,
    serving,
)
from utils.errors import UserError
from utils.interrupt import Interrupted, handled_by

LOCAL = "127.0.0.1"


def exchange(server, data, half_close=True):
    """What the server answers to these bytes."""
    received = b""
    with socket.create_connection((LOCAL, server.effective_port), timeout=30) as connection:
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
        except OSError:
            pass
    return received


def post_head(*lines):
    head = ["POST /search HTTP/1.1", "Host: localhost", "Content-Type: image/png", *lines]
    return "\r\n".join([*head, "", ""]).encode()


# ---- What a browser may do with it ----


def test_every_answer_has_the_security_headers(client, server):
    answers = [client.ask(path) for path in ("/", "/page.js", "/search?row=1", "/thumbnail?row=1", "/no", "/search")]
    headers = [answer.headers for answer in answers]
    for data in (b"hello\r\n\r\n", post_head("Content-Length: 20000001")):  # refused by waitress itself
        head, _, body = exchange(server, data, half_close=False).decode().partition("\r\n\r\n")
        assert set(json.loads(body)) == {"error"}
        headers.append(dict(line.split(": ", 1) for line in head.split("\r\n")[1:]))
        assert "Server" not in headers[-1]
    for one in headers:
        policy = one["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert (one["X-Content-Type-Options"], one["Cache-Control"]) == ("nosniff", "no-store")
        assert one["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in one


def test_the_page_loads_nothing_from_other_sites(client):
    for path in ("/", "/page.js", "/page.css"):
        text = client.ask(path).text
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.", text.replace("http://www.w3.org", ""))
        assert "@import" not in text and "style=" not in text and "onclick" not in text


def test_only_own_names_of_the_host_are_accepted(client, server):
    for host in ("127.0.0.1:8765", "localhost:8765", "LOCALHOST:9000", "[::1]:9000", "127.0.0.1", "192.168.1.5:8765"):
        assert client.ask("/", Host=host).status_code == 200, host
    for host in (
        "evil.example:8765",
        "localhost.evil.example:8765",
        "127.0.0.1.evil.example:8765",
        "user@localhost:8765",
        "127.0.0.1:8765:8765",
        "[::1:8765",
        "192.168.1.5",
        "192.168.1.5:1",
        "localhost, evil.example",
        "",
    ):
        wanted = "Open this page as http://127.0.0.1:8765/ (--allow-host"
        assert client.error(400, "/", Host=host).startswith(wanted), host
    assert b" 400 " in exchange(server, b"GET / HTTP/1.0\r\n\r\n")
    assert b" 400 " in exchange(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")


def test_a_tunnel_and_a_proxy_show_the_page(digits):
    """`ssh -L 9000:127.0.0.1:PORT`, and a proxy with encryption and a name of its own."""
    client, image = Client(digits, allowed_hosts=["Images.example.org"]), file_of(digits, 0)
    for host in ("localhost:9000", "127.0.0.1:9000", "[::1]:9000", "127.0.0.1"):
        assert client.json("/search", image, Host=host, Origin=f"http://{host}"), host
    for host in ("images.example.org", "images.example.org:8443", "127.0.0.1:8765"):
        assert client.json("/search", image, Host=host, Origin="https://images.example.org"), host
    assert "another site" in client.error(403, "/search", image, Host="localhost:9000", Origin="http://localhost:3000")
    assert "--allow-host NAME" in client.error(400, "/", Host="other.example.org")


def test_a_page_of_another_site_cannot_send_images(client, digits):
    image = file_of(digits, 0)
    own = {"Origin": "http://127.0.0.1:8765"}
    for headers in (own, own | {"Sec_Fetch_Site": "same-origin"}, {}):
        assert client.json("/search", image, **headers)
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "ftp://127.0.0.1:8765"},
        {"Origin": "http://localhost:8765"},
        {"Origin": "http://127.0.0.1:8765, http://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ):
        assert "another site" in client.error(403, "/search", image, **headers)


def test_other_methods(client):
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "NONSENSE"):
        answer = client.ask("/", method=method)
        assert answer.status_code == 405 and answer.headers["Allow"] and answer.json["error"], method
    assert client.error(405, "/", b"x") == "This address does not support that method."


# ---- The server ----


def test_a_connection_is_for_one_request(server):
    for version in (b"1.0\r\nConnection: keep-alive", b"1.1"):
        answer = exchange(server, b"GET /labels HTTP/" + version + b"\r\nHost: localhost\r\n\r\n", half_close=False)
        assert b" 200 " in answer and b"\r\nConnection: close\r\n" in answer


def test_many_at_once_get_their_own_answers(server, digits):
    def once(row):
        if row % 3:
            return row, fetch(server, f"/search?row={row}&k=9"), neighbours(digits, code_of(digits, row), 9, row)
        return row, fetch(server, "/search?k=9", file_of(digits, row)), neighbours(digits, code_of(digits, row), 9)

    with ThreadPoolExecutor(16) as executor:
        for row, (status, found), wanted in executor.map(once, range(60)):
            assert status == 200
            assert [(item["distance"], item["row"]) for item in found["neighbours"]] == wanted, row


def test_an_upload_is_never_written_to_disk(server):
    """Nor by waitress, which keeps large bodies in files by default."""
    written, watching = [], threading.Event()

    def watch(event, arguments):
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if watching.is_set() and event == "open" and isinstance(arguments[2], int) and arguments[2] & writing:
            written.append(arguments[0])

    sys.addaudithook(watch)
    image = encoded(photo(1, 2000, 1500), "BMP")
    assert len(image) > 1_000_000
    watching.set()
    try:
        with open(os.devnull, "w"):
            pass
        assert fetch(server, "/search", image)[0] == 200
    finally:
        watching.clear()
    assert written == [os.devnull]  # the watch works, and has seen nothing else


def test_a_large_body_is_refused_before_it_is_read(server):
    answer = exchange(server, post_head("Content-Length: 20000001"), half_close=False)
    assert b" 413 " in answer and b"The file is larger than 20 MB." in answer
    chunks = b"".join(b"100000\r\n" + bytes(1 << 20) + b"\r\n" for _ in range(20))
    assert b" 413 " in exchange(server, post_head("Transfer-Encoding: chunked") + chunks)
    assert fetch(server, "/search", bytes(20_000_000))[0] == 422


def test_a_length_that_is_none(server):
    for length in ("-1", "1e3", "9" * 30, "5, 6"):
        answer = exchange(server, post_head(f"Content-Length: {length}") + b"hello", half_close=False)
        assert b" 400 " in answer or b" 413 " in answer, length


def test_addresses_are_not_changed(server):
    for path in (b"/search//", b"/./page.css", b"/x/../page.css", b"/%2e/page.css"):
        assert b" 404 " in exchange(server, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(client, monkeypatch, number):
    before, said = threading.enumerate(), []

    def say(line, flush):
        said.append(line)
        threading.Timer(0.05, os.kill, [os.getpid(), number]).start()

    def interrupt(number, frame):
        raise Interrupted(number)

    monkeypatch.setattr(search.server, "print", say, raising=False)
    with handled_by(interrupt), pytest.raises(Interrupted, match=signal.Signals(number).name):
        serve(client.app, LOCAL, 0, "130 images")
    assert re.fullmatch(r"130 images: http://127.0.0.1:\d+/ \(Ctrl\+C stops the server\)", said[0])
    for thread in set(threading.enumerate()) - set(before):  # told to end, which takes a moment
        thread.join(timeout=20)
        assert not thread.is_alive(), thread


def test_slow_clients_are_dropped_and_then_the_next_one_is_answered(monkeypatch):
    """All places are held by clients that send a byte now and then, or do not read their answer."""
    monkeypatch.setattr(search.server, "REQUESTS", 4)
    app = protected_app(__name__, LOCAL, [])
    app.get("/")(lambda: bytes(15_000_000))
    end = time.monotonic() + 30

    def until(condition):
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    def send_bytes(start):
        with socket.create_connection((LOCAL, server.effective_port)) as connection:
            connection.sendall(start)
            connection.settimeout(0.02)
            while time.monotonic() < end:
                with suppress(TimeoutError):
                    connection.sendall(b"a")
                    return connection.recv(1 << 16)

    starts = (b"", b"GET / HTTP/1.1\r\nX: ", post_head("Content-Length: 100000"))
    with (
        LocalServer(app, LOCAL, 0) as server,
        ThreadPoolExecutor(4) as executor,
        socket.create_connection((LOCAL, server.effective_port)) as unread,
    ):
        unread.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        slow = [executor.submit(send_bytes, start) for start in starts]
        until(lambda: len(server.active_channels) == 4)
        following = executor.submit(fetch, server, "/nothing")
        with pytest.raises(TimeoutError):
            following.result(timeout=0.5)
        monkeypatch.setattr(search.server, "SECONDS", 0.5)
        assert following.result()[0] == 404
        assert all(isinstance(one.exception(), ConnectionError) or one.result() == b"" for one in slow)
        until(lambda: not server.active_channels)


def test_an_internal_error_is_answered_too(client, monkeypatch, caplog):
    monkeypatch.setattr(Store, "search", lambda *a, **o: 1 / 0)
    assert "its terminal shows the details" in client.error(500, "/search?row=1")
    monkeypatch.undo()
    assert client.json("/search?row=1")
    assert "ZeroDivisionError" in caplog.text


def test_where_it_cannot_listen(client, server):
    with pytest.raises(UserError, match=r"--host 127.0.0.1 --port \d+: cannot listen there"):
        LocalServer(client.app, LOCAL, server.effective_port)
    with pytest.raises(UserError, match=r"--host no\.such\.host\.invalid"):
        LocalServer(client.app, "no.such.host.invalid", 0)


def test_addresses_to_open(client):
    for host, name in (("::1", "[::1]"), ("0.0.0.0", "localhost")):
        try:
            with LocalServer(client.app, host, 0) as server:
                assert server.address == f"http://{name}:{server.effective_port}/"
        except UserError:
            assert host == "::1"  # this machine has no IPv6


# ---- 5,000 malformed requests ----

_BAD_NUMBERS = ("-1", "NaN", "1e9", "9" * 40, "0x10", "", "%00", "٣", "1;2", "../../etc/passwd", "%ff", "500", "0")
_BAD_PATHS = (
    "/../../etc/passwd",
    "/%2e%2e/x",
    "//x/y",
    "*",
    "x",
    "",
    "/search/",
    "/add",
    "http://x",
    "/" + "a" * 66_000,
)
_BAD_METHODS = ("PUT", "get", "FOO", "", "G" * 300, "OPTIONS", "GET GET", "\0")
_BAD_VERSIONS = ("HTTP/2.0", "HTTP/9.9.9", "HTTP/x", "", "FTP/1", "HTTP/1.1 x")
_BAD_KINDS = ("text/html", "multipart/form-data", ";;;", "\xff", "")
_BAD_LENGTHS = (1_000_000, 10**9, -5, "x", "", 10**40, "1, 1")
_BAD_HEADERS = ("no colon", ": no name", "Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Host: twice")
_PARAMETERS = {"/search": ("row", "k", "label"), "/thumbnail": ("row",), "/collection": ("start", "count", "label")}


def bad_request(chance, image):
    """Bytes of a request in which any part may be wrong; about one in four is a good one."""

    def part(good, *bad, share=0.08):
        return chance.choice(bad) if bad and chance.random() < share else good

    if chance.random() < 0.08:
        return chance.randbytes(chance.randrange(400))
    path = part(chance.choice(("/", "/search", "/search", "/thumbnail", "/collection", "/labels")), *_BAD_PATHS)
    method = "POST" if path == "/search" and chance.random() < 0.5 else chance.choice(("GET", "GET", "HEAD"))
    wanted = ("k",) if method == "POST" else _PARAMETERS.get(path, ())
    names = [part(name, "x", "", "row[]", "row", share=0.04) for name in wanted if chance.random() < 0.9]
    numbers = [str(chance.randrange(1, 10 if name == "label" else IMAGES)) for name in names]
    query = "&".join(f"{name}={part(number, *_BAD_NUMBERS)}" for name, number in zip(names, numbers, strict=True))
    target = f"{path}?{query}" if query else path
    lines = [f"{part(method, *_BAD_METHODS)} {target} {part('HTTP/1.1', *_BAD_VERSIONS, share=0.05)}"]
    lines += [f"Host: {part('localhost', 'evil.example', '', share=0.05)}"] * part(1, 0, 2, share=0.04)
    lines += part([], *([header] for header in _BAD_HEADERS), ["X: " + "a" * 70_000], ["X: 1"] * 150)
    body = b""
    if method == "POST":
        body = part(image, image[:200], chance.randbytes(300), b"", bytes(5000), share=0.3)
        lines += [f"Content-Type: {part('image/png', *_BAD_KINDS)}"]
        lines += [f"Content-Length: {part(len(body), *_BAD_LENGTHS)}"]
        lines += part([], ["Transfer-Encoding: chunked"], ["Transfer-Encoding: x"], ["Expect: 100-continue"], share=0.1)
    data = "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body
    place = chance.randrange(len(data))
    return part(data, data[:place], data[:place] + chance.randbytes(1) + data[place + 1 :])


def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_it_still_answers_after_five_thousand_malformed_requests(digits, caplog):
    image, chance, seen = file_of(digits, 0), random.Random("page"), Counter()
    with serving(digits) as server:
        before = threading.active_count(), open_files()
        ask = ("/search?row=5", None), ("/search", image), ("/", None)
        wanted = [fetch(server, *one) for one in ask]
        for _ in range(5_000):
            data = bad_request(chance, image)
            if chance.random() < 0.05:  # hang up with bytes unread, so that the connection is reset
                with socket.create_connection((LOCAL, server.effective_port)) as connection:
                    connection.sendall(data)
                seen["hung up"] += 1
                continue
            answer = exchange(server, data)
            status = re.match(rb"(?:HTTP/1\.1 100 Continue\r\n\r\n)?HTTP/1\.[01] (\d{3}) ", answer)
            assert status or not answer, answer[:100]
            seen[int(status[1]) if status else "closed"] += 1
        assert not {500, 503} & seen.keys(), seen
        assert {200, 400, 403, 404, 405, 413, 415, 422, 431, 501} <= seen.keys(), seen
        assert 500 < seen[200] < 2_500, seen
        assert [fetch(server, *one) for one in ask] == wanted
        end = time.monotonic() + 20
        while threading.active_count() > before[0] or open_files() > before[1]:
            assert time.monotonic() < end, (threading.active_count(), open_files(), before)
            time.sleep(0.05)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
