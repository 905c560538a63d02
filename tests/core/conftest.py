"""Tiny plugins for tests of workers; a package index and plugin folders for those of environments."""

from __future__ import annotations

import os
import textwrap
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploykit import _plugins
from deploykit.plugins import Plugin

MakePlugin = Callable[..., Plugin]


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of deploykit that belongs to this test."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def make_plugin(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlugin:
    """Return a function that writes the body of a plugin to a file and returns the plugin.

    Workers find it by `DEPLOYKIT_PLUGIN_PATH`, the user's own way.
    """
    root = tmp_path / "plugins"
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(root))

    def make(body: str, *, kind: str = "converter", name: str = "tiny") -> Plugin:
        path = root / f"{kind}s" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(body), encoding="utf-8")
        functions = {
            "converter": ("inspect", "convert", "reference"),
            "target": ("probe", "compile", "load"),
        }
        return Plugin(
            kind=kind,
            name=name,
            path=path,
            module=f"deploykit._plugins.{kind}s.{name}",
            summary="for a test",
            formats=("tiny",) if kind == "converter" else (),
            devices=("cpu",) if kind == "target" else (),
            functions=functions[kind],
            requires_python=">=3.10",
            dependencies=(),
            settings={},
            newest_opset=None,
            block="",
        )

    return make


# --- an index of packages and a folder of plugins, small enough to make real environments ---------


WriteWheel = Callable[..., Path]


def _write_wheel(folder: Path, name: str, version: str, *, requires: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    members = {
        f"{name}/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in [*members, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in {**members, f"{info}/RECORD": record}.items():
            wheel.writestr(member, text)
    return path


class PackageServer:
    """A package index on this machine that can be slow, or gone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.requests: list[str] = []
        self.go = threading.Event()  # cleared: downloads of wheels wait
        self.go.set()
        self.asked = threading.Event()  # set once a wheel was asked for
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                content = outer.content(self.path)
                wheel = self.path.endswith(".whl")
                if wheel:
                    outer.asked.set()
                    outer.go.wait(60)
                try:
                    self.send_response(200 if content is not None else 404)
                    self.send_header("Content-Type", "application/zip" if wheel else "text/html")
                    self.send_header("Content-Length", str(len(content or b"")))
                    self.end_headers()
                    if body:
                        self.wfile.write(content or b"")
                except (BrokenPipeError, ConnectionResetError):
                    outer.requests.append("gone")  # the client was killed, as some tests do

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet: `requests` has it all."""

        self.server: ThreadingHTTPServer | None = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple/"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def add(self, name: str, version: str, *, requires: tuple[str, ...] = ()) -> None:
        """Offer a wheel of `name`."""
        _write_wheel(self.folder, name, version, requires=requires)

    def content(self, path: str) -> bytes | None:
        """Return what is at `path`: a page of links, or a wheel."""
        if path.startswith("/files/"):
            file = self.folder / Path(path).name
            return file.read_bytes() if file.is_file() else None
        name = path.strip("/").partition("/")[2].replace("-", "_")
        wheels = sorted(self.folder.glob(f"{name}-*.whl"))
        links = "".join(f'<a href="/files/{w.name}">{w.name}</a>' for w in wheels)
        return f"<!DOCTYPE html><html><body>{links}</body></html>".encode() if wheels else None

    def stop(self) -> None:
        """Be gone: connections are refused from now on."""
        self.go.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()
            self.server = None


class PluginFolder:
    """A folder of plugins, as DEPLOYKIT_PLUGIN_PATH may name one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(
        self,
        name: str,
        *dependencies: str,
        kind: str = "converter",
        requires_python: str = ">=3.8",
        fields: str = "",
        block: str = "",
        body: str = "",
    ) -> Path:
        """Write the plugin file `name` whose block has `fields` more, or is `block` altogether."""
        own = f'formats = ["{name}/model"]' if kind == "converter" else 'devices = ["cpu"]'
        function = "convert" if kind == "converter" else "probe"
        whole = block or (
            f'requires-python = "{requires_python}"\n'
            f"dependencies = {[*dependencies]!r}\n"
            f"{fields}\n"
            "[tool.deploykit]\n"
            f'summary = "a plugin of the tests"\n{own}\nfunctions = ["{function}"]\n'
        )
        lines = "".join(f"# {line}".rstrip() + "\n" for line in whole.splitlines())
        path = self.folder / f"{kind}s" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'# /// script\n{lines}# ///\n"""A plugin of the tests."""\n{body}')
        return path


@pytest.fixture
def write_wheel() -> WriteWheel:
    """A function that writes a wheel: (folder, name, version, requires=()) -> its path."""
    return _write_wheel


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a cache of the test's own, and none of this machine's settings for pip and uv."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "DEPLOYKIT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def package_server(
    tmp_path: Path, own_settings: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PackageServer]:
    """An index that offers `deploykit_demo` 1.0 and 2.0, and that pip is set to."""
    server = PackageServer(tmp_path / "index")
    server.add("deploykit_demo", "1.0")
    server.add("deploykit_demo", "2.0")
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    yield server
    server.stop()


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginFolder:
    """A folder of plugins that is the only one."""
    folder = PluginFolder(tmp_path / "plugins")
    monkeypatch.setattr(_plugins, "__path__", [str(folder.folder)])
    return folder


# --- plugins that go wrong, for tests of whole operations ------------------------------------------


ODD_PLUGINS = Path(__file__).resolve().parents[1] / "fixtures" / "plugins"


@pytest.fixture(scope="module")
def odd_plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The target and the converter of `fixtures/plugins` beside the real ones.

    Gives the home of deploykit, which is this module's own.
    """
    own = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_HOME", str(own))
        patch.setenv("DEPLOYKIT_PLUGIN_PATH", str(ODD_PLUGINS))
        patch.setattr(_plugins, "__path__", [*_plugins.__path__, str(ODD_PLUGINS)])
        yield own


@pytest.fixture
def odd_model(odd_model: Path, odd_plugins: Path) -> Path:
    """The model, and the plugins that can convert it."""
    return odd_model
