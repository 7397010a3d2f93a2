"""A hub of one file on this machine, with real HTTP: HEAD, Range, ETag, a redirect to another host, and faults."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """What goes wrong with one request: an HTTP status, or a body.

    A body can be `cut` at half or at a `third`, `short` of what was told, `longer`, `flipped` or `slow`.
    """

    status: int = 0
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """`faults` are used up one a request, HEADs and GETs of the file apart; `requests` records what was asked."""

    data: bytes
    address: str = ""
    port: int = 0
    repo: str = "openai-community/gpt2"
    heads: list[Fault] = field(default_factory=list)
    gets: list[Fault] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def count(self, method: str, part: str) -> int:
        """How many requests of this method had `part` in their path."""
        return sum(method == found and part in path for found, path, _ in self.requests)


@contextmanager
def hub_with(data: bytes) -> Iterator[Hub]:
    """A running hub that has `data` as its model.safetensors."""
    hub = Hub(data)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer("HEAD", hub.heads)

        def do_GET(self) -> None:
            self.answer("GET", hub.gets if "/cdn/" in self.path else [])

        def answer(self, method: str, faults: list[Fault]) -> None:
            with hub.lock:
                hub.requests.append((method, self.path, dict(self.headers)))
                fault = faults.pop(0) if faults else Fault()
            if fault.status:
                self.reply(fault.status, b"trouble", method, fault.headers)
            elif self.path.startswith("/cdn/"):
                self.give(fault)
            elif self.path.startswith(f"/{hub.repo}/resolve/") and self.path.endswith("/model.safetensors"):
                about = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(hub.data))}
                about["X-Linked-ETag"] = f'"{hub.etag or hub.sha256}"'
                # Another host by name: a token must not follow, and metadata stand on this answer.
                about["Location"] = f"http://localhost:{hub.port}/cdn/{hub.sha256}"
                self.reply(302, b"", method, about | fault.headers)
            else:
                self.reply(404, b"nothing here", method, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

        def reply(self, status: int, body: bytes, method: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if method == "GET":
                self.wfile.write(body)

        def give(self, fault: Fault) -> None:
            start = 0
            if hub.ranges and (asked := self.headers.get("Range")):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
            body = hub.data[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(hub.data) - 1}/{len(hub.data)}")
            if fault.body == "flipped":
                body = bytes([body[0] ^ 1]) + body[1:]
            if fault.body == "longer":
                body += b"more"
            told = len(body) if fault.body != "short" else len(body) // 2
            self.send_header("Content-Length", str(told))
            self.end_headers()
            if fault.body in ("cut", "short", "third"):
                self.wfile.write(body[: len(body) // (3 if fault.body == "third" else 2)])
                self.close_connection = True
                return
            if fault.body == "slow":  # half of it, then nothing for as long as the other side waits
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                hub.reached.set()
                threading.Event().wait(20)
                self.close_connection = True
                return
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            pass  # a client that goes away is part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    hub.address = f"http://127.0.0.1:{hub.port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
