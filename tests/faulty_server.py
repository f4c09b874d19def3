"""A server of one file that fails as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyServer(ThreadingHTTPServer):
    """Answers requests for ``content``, each as the next of ``faults`` says.

    A status; ``drop`` closes the connection, ``stall`` never answers, ``half`` never ends;
    ``ok``, and what comes after the last, is right.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.over = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def will(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        self.requests.clear()

    def __enter__(self) -> FaultyServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else "ok"
        self.server.requests.append(fault)
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault in ("stall", "drop"):
            self.close_connection = True
            if fault == "stall":
                self.server.over.wait(60)
            return
        body = self.head()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if fault == "half" else body)
            self.wfile.flush()
            if fault == "half":
                self.close_connection = True
                self.server.over.wait(60)

    def head(self) -> bytes:
        """Send the status and what belongs to it; returns the part that was asked for."""
        content, asked = self.server.content, self.headers.get("Range")
        first, end = 0, len(content)
        if asked:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            first, end = int(start), min(end, int(stop) + 1 if stop else end)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        return content[first:end]
