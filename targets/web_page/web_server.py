"""A web server for one page on this machine: its files, and tensors to and from it.

Only 127.0.0.1 reaches it, and below one path that nobody can guess: another user of the machine
cannot read the model. The headers make the page cross-origin isolated, without which a browser gives
it no threads and a coarse clock (https://web.dev/articles/coop-coep).
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

LARGEST_BYTES = 1 << 32
"""Of what the page may send: it has no more memory than this."""

Blocks = list[bytes | memoryview]


class WebServer:
    """Serves the files of `folder` from a thread of its own. Close it."""

    def __init__(self, folder: Path) -> None:
        self._server = _Server(folder)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="web server", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """The address of the folder, with a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_port}{self._server.prefix}"

    def offer(self, blocks: Iterable[bytes | memoryview]) -> str:
        """Return the address, relative to the folder, under which the page finds `blocks` once."""
        name = f"-/{secrets.token_hex(8)}"
        self._server.offered[name] = list(blocks)
        return name

    def expect(self) -> tuple[str, Callable[[], bytes]]:
        """Return the address to which the page sends bytes, and what gives them."""
        name = f"-/{secrets.token_hex(8)}"
        self._server.expected[name] = b""
        return name, lambda: self._server.expected.pop(name)

    def close(self) -> None:
        """End it. Can be called again."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prefix = f"/{secrets.token_urlsafe(16)}/"
        # only these names: no path of a request ever reaches the file system
        self.files = {path.name: path for path in folder.iterdir() if path.is_file()}
        self.offered: dict[str, Blocks] = {}
        self.expected: dict[str, bytes] = {}


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self._name()
        if name in self.server.offered:
            blocks = self.server.offered.pop(name)
            self._head(200, sum(len(block) for block in blocks), "application/octet-stream")
            for block in blocks:
                self.wfile.write(block)
            return
        path = self.server.files.get(name)
        if path is None:
            self._head(404, 0, "text/plain")
            return
        kind = KINDS.get(path.suffix, "application/octet-stream")
        with path.open("rb") as stream:
            self._head(200, path.stat().st_size, kind)
            shutil.copyfileobj(stream, self.wfile, 1 << 20)

    def do_POST(self) -> None:
        name = self._name()
        length = self.headers.get("Content-Length", "")
        if name not in self.server.expected or not length.isdecimal():
            self._head(404, 0, "text/plain")
            self.close_connection = True
            return
        if int(length) > LARGEST_BYTES:
            self._head(413, 0, "text/plain")
            self.close_connection = True
            return
        self.server.expected[name] = self.rfile.read(int(length))
        self._head(204, 0, "text/plain")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the page's own messages are in the log."""

    def _name(self) -> str:
        path = self.path.partition("?")[0]
        prefix = self.server.prefix
        if not path.startswith(prefix):
            return ""
        return path.removeprefix(prefix) or "index.html"

    def _head(self, status: int, length: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
