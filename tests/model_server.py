"""A web server that fails in the ways that servers fail, and a model small enough to serve."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BODY = bytes(range(256)) * 4000  # 1 MB
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@dataclass
class Served:
    """How the server answers for one path."""

    body: bytes = b""
    status: int = 200
    ranges: bool = True
    drop_after: list[int] = field(default_factory=list)  # bytes per answer, then whole
    claimed: int | None = None  # Content-Length of a body that is longer than what is sent
    headers: dict[str, str] = field(default_factory=dict)
    stall: bool = False  # send half and wait


@dataclass
class Server:
    address: str
    files: dict[str, Served] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def serve(self, path: str, body: bytes = BODY, **how: object) -> str:
        self.files[path] = Served(body, **how)  # type: ignore[arg-type]
        return self.address + path

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that leaves early is part of the tests


@contextmanager
def serving() -> Iterator[Server]:
    """A server on 127.0.0.1 that answers as its ``files`` say."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.path, dict(self.headers)))
            self.close_connection = True
            served = state.files.get(self.path, Served(status=404))
            start = 0
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            whole = served.claimed or len(served.body)
            if wanted and served.ranges and served.status == 200:
                start = int(wanted[1])
            self.send_response(206 if start else served.status)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.send_header("Content-Length", str(whole - start))
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.end_headers()
            body = served.body[start:]
            if served.stall and not state.release.is_set():
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                state.half_sent.set()
                state.release.wait(20)
                return
            self.wfile.write(body[: served.drop_after.pop(0)] if served.drop_after else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = QuietServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    state.release.set()
    http.shutdown()
    http.server_close()


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
