"""The worker's own side of the channel, spoken to by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deploykit import protocol

WORKER = Path(protocol.__file__).with_name("worker.py")


LOADED = """
import sys
files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(*{name.partition(".")[0] for name, file in files.items() if "-packages" in file})
"""


def speak(folder: Path, module: str, *requests: dict[str, object]) -> list[dict[str, object]]:
    """Return what a worker answers to `requests`."""
    done = subprocess.run(
        [sys.executable, "-I", "-X", "utf8", str(WORKER), module, str(folder)],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_greets_with_the_version_of_the_protocol(tmp_path: Path) -> None:
    (hello,) = speak(tmp_path, "deploykit._plugins.targets.none")
    assert hello["hello"] == protocol.VERSION
    assert hello["python"] == sys.version.split()[0]


def test_it_answers_what_it_cannot_do(tmp_path: Path) -> None:
    answers = speak(tmp_path, "deploykit._plugins.targets.none", {"id": 7, "do": "dance"})
    assert answers[1]["id"] == 7
    assert "_do_dance" in json.dumps(answers[1]["error"])


def test_it_sees_no_package_of_the_core_but_deploykit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's files are enough for themselves: a plugin's Python has none of our dependencies."""
    plugin = tmp_path / "plugins" / "converters" / "tiny.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(
        textwrap.dedent("""
        import sys
        from deploykit.protocol import Signature, TensorSpec

        def inspect(source):
            foreign = {
                name.partition(".")[0] for name, module in sys.modules.items()
                if "-packages" in (getattr(module, "__file__", None) or "")
            }
            spec = TensorSpec(name=" ".join(sorted(foreign)), dtype="x", shape=None)
            return Signature(inputs=(spec,), outputs=())
        """)
    )
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(tmp_path / "plugins"))
    (tmp_path / "request-1.json").write_text('{"location": "/", "format": "x"}')
    request = {
        "id": 1,
        "do": "call",
        "function": "inspect",
        "type": "Source",
        "request": "request-1.json",
        "response": "response-1.json",
    }
    answers = speak(tmp_path, "deploykit._plugins.converters.tiny", request)
    assert answers[-1] == {"id": 1, "ok": {"response": "response-1.json"}}
    found = json.loads((tmp_path / "response-1.json").read_text())
    foreign = set(found["inputs"][0]["name"].split())
    # what site initialisation of this very environment loads by itself (`.pth` files)
    bare = subprocess.run(
        [
            *(sys.executable, "-I", "-c"),
            LOADED,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert foreign <= {*bare.stdout.split(), "deploykit"}


@pytest.mark.parametrize(
    "name",
    [
        *("errors", "family", "frames", "guard", "progress", "protocol"),
        *("serving", "telemetry", "tensors", "worker"),
    ],
)
def test_files_that_run_in_plugin_environments_are_valid_for_python_3_10(name: str) -> None:
    import ast

    text = WORKER.with_name(f"{name}.py").read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 10))
    assert "also runs inside plugin environments" in text
