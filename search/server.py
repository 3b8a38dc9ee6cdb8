"""A web server for the local machine that tolerates misbehaving clients: time, bytes and requests are limited."""

from __future__ import annotations

import io
import ipaddress
import json
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from utils.log import log

_LINGER_SECONDS = 1.0  # the rest of a refused request is read and dropped, otherwise the client would miss the reply
_MOST_PARAMETERS = 8

# What a browser may do with an answer: load nothing from other sites, put it in no frame, store nothing.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MESSAGES = {
    HTTPStatus.METHOD_NOT_ALLOWED: "Only GET, HEAD and POST are supported.",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The address is too long.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The request has too many headers, or too long ones.",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "Only HTTP/1.0 and HTTP/1.1 are supported.",
}


class Refused(Exception):
    """A request that is refused; the message is one sentence for the person who sent it."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Limits for all clients.

    Attributes:
        header_seconds: for a whole request before its body.
        body_seconds: for a whole body, and for receiving an answer.
        requests: at the same time; the next one waits for `wait_seconds` and is then refused.
    """

    body_bytes: int = 20_000_000
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    requests: int = 32
    wait_seconds: float = 2.0


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Reply:
    """An answer: body, media type and status."""

    body: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK


@dataclass(frozen=True)
class Request:
    """The parameters of the query string and the body of a request that has passed the checks of the server."""

    parameters: Mapping[str, str]
    body: bytes = b""

    def only(self, *names: str) -> None:
        """Refuse parameters other than `names`."""
        for name in self.parameters.keys() - set(names):
            raise Refused(HTTPStatus.BAD_REQUEST, f"Unknown parameter '{name[:40]}'.")

    def whole_number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A parameter as a whole number in low..high; otherwise, or if it is missing without a default, refused."""
        text = self.parameters.get(name)
        if text is None:
            if default is None:
                raise Refused(HTTPStatus.BAD_REQUEST, f"The parameter '{name}' is missing.")
            return default
        if not re.fullmatch(r"[0-9]{1,15}", text) or not low <= int(text) <= high:
            raise Refused(HTTPStatus.BAD_REQUEST, f"'{name}' must be a whole number from {low:,} to {high:,}.")
        return int(text)


Answer = Callable[[Request], Reply]


def json_reply(content: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(json.dumps(content).encode("ascii"), "application/json; charset=utf-8", status)


class LocalServer(ThreadingHTTPServer):
    """Answers by tables of addresses, with one thread per request.

    Args:
        host, port: where to listen; 0: any free port (`server_port`).
        get: functions that answer GET and HEAD, by path. The path of a request is only looked up here.
        post: functions that answer POST, by path.
        post_kinds: media types that a body may have, e.g. "image/*".
        allowed_hosts: names under which a proxy or a tunnel shows this server.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        *,
        get: Mapping[str, Answer],
        post: Mapping[str, Answer],
        post_kinds: tuple[str, ...],
        limits: Limits,
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        self.get, self.post, self.post_kinds, self.limits, self.host = get, post, post_kinds, limits, host
        self.allowed_hosts = frozenset(name.lower() for name in allowed_hosts)
        self._places = threading.BoundedSemaphore(limits.requests)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind looks up the name of the machine in the DNS: slow, and not needed here.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def address(self) -> str:
        """The address to open in a browser."""
        host = "localhost" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(timeout=self.limits.wait_seconds):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started that would release the place
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def _refuse(self, request: Any) -> None:
        body = json_reply({"error": "Too many requests at once; try again in a few seconds."}).body
        try:
            request.settimeout(0.1)
            request.sendall(
                b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\n"
                b"Content-Length: %d\r\nRetry-After: 2\r\nConnection: close\r\n\r\n%s" % (len(body), body)
            )
        except OSError:
            pass
        self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("A connection was lost", exc_info=True)  # the client has gone; our own errors are answered with 500


class _Deadline(io.RawIOBase):
    """Reads a socket until a fixed time, so that a client cannot hold it by sending single bytes."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.connection = connection
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    """One request per connection (HTTP/1.0), so that no idle connection takes a place."""

    server: LocalServer
    rfile: io.BufferedIOBase
    server_version, sys_version = "schn", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._deadline = _Deadline(self.connection, self.server.limits.header_seconds)
        self.rfile = io.BufferedReader(self._deadline)
        self._leave_unread = False

    def finish(self) -> None:
        super().finish()
        if not self._leave_unread:
            return
        # To close with unread bytes resets the connection; the browser would show a lost connection, not the reply.
        self.connection.shutdown(socket.SHUT_WR)
        end = time.monotonic() + _LINGER_SECONDS
        while (left := end - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not self.connection.recv(1 << 16):
                return

    def do_GET(self) -> None:
        try:
            self._check_sender()
            path, _, query = self.path.partition("?")
            answer = (self.server.post if self.command == "POST" else self.server.get).get(path)
            if answer is None:
                if path in self.server.get or path in self.server.post:
                    raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "This address does not support that method.")
                raise Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")
            parameters = _parameters(query)
            body = self._body() if self.command == "POST" else b""
            reply = answer(Request(parameters, body))
        except Refused as refused:
            self._leave_unread = True
            reply = json_reply({"error": str(refused)}, refused.status)
        except Exception:
            log.exception("%s %.200s could not be answered", self.command, self.path)
            message = "Internal error of the server; its terminal shows the details."
            reply = json_reply({"error": message}, HTTPStatus.INTERNAL_SERVER_ERROR)
        self._send(reply)

    do_HEAD = do_POST = do_GET

    def _check_sender(self) -> None:
        """Refuse requests that a page of another site could make a browser send.

        With DNS rebinding, an attacker lets the name of a site point to this machine, and the browser sends that name
        as Host. Origin and Sec-Fetch-Site tell that a POST comes from another site.
        """
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            name = "--allow-host NAME of `python -m search serve` allows another name"
            raise Refused(HTTPStatus.BAD_REQUEST, f"Open this page as {self.server.address} ({name}).")
        if self.command == "POST":
            origins = self.headers.get_all("Origin", [])
            foreign = not all(self._is_own_origin(origin.lower(), hosts[0].lower()) for origin in origins)
            if foreign or self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
                raise Refused(HTTPStatus.FORBIDDEN, "A page of another site may not send images here.")

    def _is_own_origin(self, origin: str, host: str) -> bool:
        """Whether the page that sends is this one: under the same host, or under one that the user has allowed."""
        scheme, _, place = origin.partition("://")  # a proxy may add encryption, and may send its own Host
        name = place.partition(":")[0]
        return scheme in ("http", "https") and (place == host or name in self.server.allowed_hosts)

    def _is_own(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if name == "localhost" or name in self.server.allowed_hosts:
            return True  # with any port: that of a tunnel or a proxy, which a browser reaches under its own
        own_port = int(match[2] or 80) == self.server.server_port
        try:
            return ipaddress.ip_address(name).is_loopback or own_port
        except ValueError:
            return own_port and name == self.server.host.lower()

    def _body(self) -> bytes:
        kind = self.headers.get_content_type() if "Content-Type" in self.headers else "application/octet-stream"
        family = kind.partition("/")[0] + "/*"
        if not {kind, family} & set(self.server.post_kinds):
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send the bytes of an image file.")
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0]):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "The request does not state its length (Content-Length).")
        length, most = int(lengths[0]), self.server.limits.body_bytes
        if length > most:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The file is larger than {most / 1e6:g} MB.")
        self._deadline.extend(self.server.limits.body_seconds)
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, "The file took too long to arrive.") from None
        if len(body) < length:
            raise Refused(HTTPStatus.BAD_REQUEST, "The file arrived incomplete.")
        return body

    def _send(self, reply: Reply) -> None:
        self.request_version = "HTTP/1.0"  # an answer to HTTP/0.9 would have no headers
        self.connection.settimeout(self.server.limits.body_seconds)
        self.send_response(reply.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if reply.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD, POST")
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the errors of http.server in the form of all others."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self._leave_unread = True
        self._send(json_reply({"error": _MESSAGES.get(status, "The request is malformed.")}, status))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing, for privacy."""


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, True, True, errors="strict", max_num_fields=_MOST_PARAMETERS) if query else []
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, "The address is malformed after the question mark.") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise Refused(HTTPStatus.BAD_REQUEST, "The address names a parameter twice.")
    return parameters
