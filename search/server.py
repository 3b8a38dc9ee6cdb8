"""Flask and waitress for the local machine: time, bytes and requests are limited, other sites are kept out."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import threading
import time
from typing import Any, Self

from flask import Flask, Response, abort, request
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask
from werkzeug.exceptions import HTTPException

from utils.errors import UserError

MOST_BYTES = 20_000_000  # of a request
SECONDS = 40  # from the connection to the end of the answer, without the time that it takes to make the answer
REQUESTS = 32  # at the same time; further ones wait until they are accepted

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
_SENTENCES: dict[int | None, str] = {  # for the errors of Flask and waitress
    400: "The request is malformed.",
    404: "There is nothing at this address.",
    405: "This address does not support that method.",
    413: f"The file is larger than {MOST_BYTES / 1e6:g} MB.",
    431: "The request has too many headers, or too long ones.",
    500: "Internal error of the server; its terminal shows the details.",
    501: "The body of the request has a coding that is not supported.",
}

# Requests are not logged, for privacy, and clients that hang up are no news.
logging.getLogger("waitress").setLevel(logging.ERROR)


def protected_app(name: str, host: str, allowed_hosts: list[str]) -> Flask:
    """A Flask app without routes: errors are JSON, ``{"error": "One sentence."}``, and foreign senders are refused.

    The server listens on `host`; a proxy or a tunnel shows it under one of the names `allowed_hosts`.
    """
    app = Flask(name, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    names = frozenset(name.lower() for name in ("localhost", *allowed_hosts))
    app.before_request(lambda: _check_sender(host, names))

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    @app.errorhandler(HTTPException)  # Flask logs any other exception and makes a 500 of it
    def refuse(error: HTTPException) -> Any:
        is_ours = error.description != type(error).description
        sentence = error.description if is_ours else _SENTENCES[error.code]
        headers = dict(error.get_headers()) | {"Content-Type": "application/json"}  # 405 has Allow
        return {"error": sentence}, error.code, headers

    return app


def _check_sender(own: str, names: frozenset[str]) -> None:
    """Refuse what another site could make a browser send, also under a name made to lead here (DNS rebinding)."""
    host, port = request.headers.get("Host", "").lower(), int(request.environ["SERVER_PORT"])
    anywhere = "|".join([r"127\.[0-9.]+", r"\[::1\]", *map(re.escape, names)])  # a tunnel or a proxy has its own port
    here = "|".join([r"[0-9.]+", r"\[[0-9a-f:.]+\]", re.escape(own.lower())])
    own_port = "(:80)?" if port == 80 else f":{port}"
    if not re.fullmatch(f"({anywhere})(:[0-9]{{1,5}})?|({here}){own_port}", host):
        abort(400, f"Open this page as {address_of(own, port)} (--allow-host NAME of the server allows another).")
    if request.method == "POST":
        scheme, _, place = (request.headers.get("Origin") or f"http://{host}").lower().partition("://")
        # A proxy may add encryption, and may send its own Host.
        is_own = scheme in ("http", "https") and (place == host or place.partition(":")[0] in names - {"localhost"})
        if not is_own or request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            abort(403, "A page of another site may not send images here.")
        if request.mimetype and not request.mimetype.startswith(("image/", "application/octet-stream")):
            abort(415, "Send the bytes of an image file.")  # as a form of another site cannot


def address_of(host: str, port: int) -> str:
    """The address to open in a browser for a server that listens on `host`."""
    name = "localhost" if host in ("", "0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


class _Task(WSGITask):
    def start(self) -> None:
        super().start()
        self.set_close_on_finish()  # one request per connection: no idle one takes a place


class _ErrorTask(ErrorTask):
    """What waitress itself refuses, in the form of all other errors."""

    def execute(self) -> None:
        self.request.path = ""  # waitress wants to name it where the client has gone; a malformed request has none
        error = self.request.error
        body = json.dumps({"error": _SENTENCES[error.code]}).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.extend([*_HEADERS.items(), ("Content-Type", "application/json")])
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    task_class = _Task
    error_task_class = _ErrorTask


class LocalServer(TcpWSGIServer):
    """Serves an app at `address` while entered, by `thread`; port 0: any free one. UserError: it cannot listen."""

    channel_class = _Channel

    def __init__(self, app: Flask, host: str, port: int) -> None:
        try:
            super().__init__(
                app,
                host=host,
                port=port,
                ipv6=":" in host,
                threads=REQUESTS,
                connection_limit=REQUESTS + 2,  # waitress counts its own two sockets, too
                max_request_header_size=65_536,
                max_request_body_size=MOST_BYTES + 1,
                inbuf_overflow=MOST_BYTES + 2,  # larger ones would be written to a file
                outbuf_overflow=MOST_BYTES + 2,
                cleanup_interval=1,
                log_socket_errors=False,
                ident=None,
            )
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(f"--host {host} --port {port}: cannot listen there ({error}); choose others.") from error
        self.address = address_of(host, self.effective_port)
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.accepting = False
        self.pull_trigger()
        self.thread.join()

    def run(self) -> None:
        while self.accepting:
            wasyncore.loop(timeout=1, use_poll=True, map=self._map, count=1)
        self.task_dispatcher.shutdown()
        wasyncore.close_all(self._map, ignore_all=True)

    def maintenance(self, now: float) -> None:
        """Close connections that take too long; waitress would let a client hold one by sending single bytes."""
        for channel in self.active_channels.values():
            if not channel.requests and channel.creation_time < now - SECONDS:
                channel.will_close = True
                with contextlib.suppress(OSError):  # the client has gone
                    channel.socket.shutdown(socket.SHUT_RDWR)  # otherwise a client that does not read would stay


def serve(app: Flask, host: str, port: int, what: str) -> None:
    """Say where `what` is served, and serve it until a signal raises an exception. UserError as `LocalServer`."""
    with LocalServer(app, host, port) as server:
        print(f"{what}: {server.address} (Ctrl+C stops the server)", flush=True)
        while server.thread.is_alive():  # a signal during `join` would mark the thread as ended
            time.sleep(1)
