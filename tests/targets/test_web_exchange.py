"""Tensors on their way between the page and us, and the server that they go through."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploykit._plugins.targets.web_page import exchange, web_server
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from .web_models import NUMBERS

# --- tensors on their way -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.sampled_from(NUMBERS).flatmap(
            lambda dtype: arrays.arrays(
                dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)
            )
        ),
        max_size=4,
    )
)
def test_tensors_survive_their_way(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    found = exchange.unpack(b"".join(exchange.pack(tensors)))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes()


def test_strings_and_odd_layouts_survive_their_way() -> None:
    words = np.array([["", "é\U0001f600"], ["a\nb", '"']], dtype=object)
    turned = np.arange(12, dtype=">i4").reshape(3, 4).T
    found = exchange.unpack(b"".join(exchange.pack({"w": words, "t": turned})))
    assert found["w"].tolist() == words.tolist()
    assert found["t"].tolist() == turned.tolist()
    assert found["t"].flags.writeable


def _with_header(entries: list[dict[str, Any]]) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(4, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\0\0{}",
        b"\x02\0\0\0{",
        _with_header([{"name": "x", "type": "object", "dims": [1], "bytes": 8, "at": 0}]),
        _with_header([{"name": "x", "type": "float32", "dims": [9], "bytes": 36, "at": 999}]),
    ],
)
def test_other_bytes_are_no_tensors(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        exchange.unpack(data)


# --- the web server -------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[web_server.WebServer]:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<!doctype html>")
    (tmp_path / "site" / "code.mjs").write_text("1")
    server = web_server.WebServer(tmp_path / "site")
    with contextlib.closing(server):
        yield server


def _ask(server: web_server.WebServer, path: str, body: bytes | None = None) -> tuple[int, Any]:
    host, _, prefix = server.address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    with contextlib.closing(connection):
        whole = path if path.startswith("/") else f"/{prefix}{path}"
        connection.request("GET" if body is None else "POST", whole, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers


def test_the_page_is_isolated_and_its_kinds_are_right(served: web_server.WebServer) -> None:
    status, headers = _ask(served, "")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert _ask(served, "code.mjs")[1]["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "../secret.txt", "%2e%2e/secret.txt", "//etc/passwd", "-/0", "no"]
)
def test_nothing_else_is_served(served: web_server.WebServer, path: str) -> None:
    assert _ask(served, path)[0] == 404


def test_bytes_are_offered_and_taken_once(served: web_server.WebServer) -> None:
    offered = served.offer([b"ab", memoryview(b"c")])
    assert _ask(served, offered)[0] == 200
    assert _ask(served, offered)[0] == 404
    address, received = served.expect()
    assert _ask(served, address, b"sent")[0] == 204
    assert received() == b"sent"
    assert _ask(served, address, b"again")[0] == 404
