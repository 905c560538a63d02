"""Calls of a worker: results, phases, errors, what is left for a rerun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit import errors
from deploykit.events import Event
from deploykit.outcomes import outcome_of
from deploykit.plugins import Plugin
from deploykit.protocol import (
    Availability,
    Signature,
    Source,
    TensorSpec,
)
from deploykit.steps import Limits, Worker

MakePlugin = Callable[..., Plugin]
PYTHON = Path(sys.executable)
HERE = Source(location="/nowhere", format="tiny")
EMPTY = Signature(inputs=(), outputs=())

HEAD = """
import os, signal, subprocess, sys, time
from deploykit import errors, progress
from deploykit.protocol import Signature, TensorSpec

def inspect(source):
"""


def body(*lines: str) -> str:
    return HEAD + "".join(f"    {line}\n" for line in lines)


def worker(plugin: Plugin, limits: Limits = Limits(), threads: int | None = None) -> Worker:
    return Worker(plugin, python=PYTHON, label="step", limits=limits, threads=threads)


# --- a call that works


def test_call_returns_the_result_and_passes_phases_on(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(
        body(
            "progress.phase('counting', 1, 2)",
            "assert source.options == {'a': 'b'}",
            "spec = TensorSpec(name='x', dtype='float32', shape=(1, 'batch', None))",
            "return Signature(inputs=(spec,), outputs=())",
        )
    )
    events: list[Event] = []
    source = Source(location="/nowhere", format="tiny", options={"a": "b"})
    with Worker(plugin, python=PYTHON, label="step", listen=events.append) as open_worker:
        found = open_worker.call("inspect", source, Signature)
        assert {path.name for path in open_worker.folder.iterdir()} >= {
            *("request-1.json", "response-1.json", "log.txt", "reproduce.sh")
        }
    assert found.inputs == (TensorSpec(name="x", dtype="float32", shape=(1, "batch", None)),)
    assert [(event.step, event.message, event.done, event.total) for event in events] == [
        ("step", "importing tiny", 0, 0),
        ("step", "inspect", 0, 0),
        ("step", "counting", 1, 2),
    ]


def test_call_without_a_request_and_with_a_tuple_result(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(
        """
        from deploykit.protocol import Availability
        def probe():
            return (Availability(device="cpu", available=True, versions={"tiny": "1"}),)
        """,
        kind="target",
    )
    with worker(plugin) as open_worker:
        found = open_worker.call("probe", None, tuple[Availability, ...])
    assert found == (Availability(device="cpu", available=True, versions={"tiny": "1"}),)


def test_what_the_plugin_prints_and_reads_stays_off_the_channel(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(
        body(
            "print('by print')",
            "os.write(1, b'by descriptor\\n')",
            "subprocess.run(['sh', '-c', 'echo by child; cat'], check=True)",
            "assert sys.stdin.read() == ''",
            "return Signature(inputs=(), outputs=())",
        )
    )
    with worker(plugin) as open_worker:
        assert open_worker.call("inspect", HERE, Signature) == EMPTY
        assert open_worker.call("inspect", HERE, Signature) == EMPTY
        log = (open_worker.folder / "log.txt").read_text()
    for line in ("by print", "by descriptor", "by child"):
        assert log.count(line) == 2


def test_the_environment_is_clean_and_isolated(
    make_plugin: MakePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/poison")
    monkeypatch.setenv("VIRTUAL_ENV", "/poison")
    # an editable install puts the checkout on the path of this interpreter, whoever runs it
    own_path = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.path, sep=chr(10))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    plugin = make_plugin(
        body(
            "assert sys.flags.isolated and sys.flags.utf8_mode",
            "assert not {'PYTHONPATH', 'VIRTUAL_ENV'} & os.environ.keys()",
            "assert os.environ['OMP_NUM_THREADS'] == os.environ['TVM_NUM_THREADS'] == '3'",
            "assert os.environ['DO_NOT_TRACK'] == '1'",
            "assert os.getcwd() == os.path.realpath(os.environ['TMPDIR'])",
            "import deploykit",
            f"assert set(sys.path) <= {set(own_path)}, sys.path",
            "return Signature(inputs=(), outputs=())",
        )
    )
    with worker(plugin, threads=3) as open_worker:
        assert open_worker.call("inspect", HERE, Signature) == EMPTY


def test_multiprocessing_spawn_inside_a_plugin_works(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(
        """
        import multiprocessing, sys
        from deploykit.protocol import Signature, TensorSpec

        def square(number):
            assert sys.flags.isolated
            return number * number

        def inspect(source):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.map(square, [3, 4])
            return Signature(inputs=(TensorSpec(name=str(found), dtype="x", shape=()),), outputs=())
        """
    )
    with worker(plugin, Limits(timeout_s=30)) as open_worker:
        assert open_worker.call("inspect", HERE, Signature).inputs[0].name == "[9, 16]"


# --- errors that the plugin raises


@pytest.mark.parametrize(
    ("line", "kind", "outcome"),
    [
        ("raise errors.UsageError('no', hint='do')", errors.UsageError, "error"),
        ("raise errors.SourceError('no', hint='do')", errors.SourceError, "error"),
        ("raise errors.MismatchError('no', hint='do')", errors.MismatchError, "wrong"),
        ("raise errors.UnavailableError('no', hint='do')", errors.UnavailableError, "skipped"),
        ("raise errors.UnsupportedError('no', hint='do')", errors.UnsupportedError, "unsupported"),
    ],
)
def test_foreseen_errors_come_back_as_themselves(
    make_plugin: MakePlugin, line: str, kind: type[errors.DeploykitError], outcome: str
) -> None:
    with worker(make_plugin(body(line))) as open_worker:
        with pytest.raises(kind) as caught:
            open_worker.call("inspect", HERE, Signature)
        assert (caught.value.message, caught.value.hint) == ("no", "do")
        assert outcome_of(caught.value).kind == outcome
        assert open_worker.alive


def test_unsupported_operators_are_kept(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(body("raise errors.UnsupportedError('no', operators=('RFFT', 'Angle'))"))
    with worker(plugin) as open_worker, pytest.raises(errors.UnsupportedError) as caught:
        open_worker.call("inspect", HERE, Signature)
    assert caught.value.operators == ("RFFT", "Angle")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise KeyError('no such layer')", "KeyError: 'no such layer'"),
        ("sys.exit('gave up')", "SystemExit: gave up"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise RuntimeError('x' * 10**7)", "9994014 characters left out"),
        ("raise RuntimeError('\\udc80 \\U0001f600')", "RuntimeError: ? \U0001f600"),
    ],
)
def test_other_exceptions_become_plugin_errors(
    make_plugin: MakePlugin, line: str, said: str
) -> None:
    plugin = make_plugin(body("progress.phase('deep inside')", line))
    with worker(plugin) as open_worker:
        with pytest.raises(errors.PluginError) as caught:
            open_worker.call("inspect", HERE, Signature)
        assert open_worker.alive
    error = caught.value
    assert said in error.message
    assert error.phase == "deep inside"
    assert error.frame == "converters/tiny.py:8 in inspect"
    assert "Traceback" in Path(error.log).read_text(errors="replace")
    assert outcome_of(error).kind == "error"


def test_a_plugin_that_cannot_be_imported_says_why(make_plugin: MakePlugin) -> None:
    plugin = make_plugin("import no_such_framework\n")
    with worker(plugin) as open_worker, pytest.raises(errors.PluginError) as caught:
        open_worker.call("inspect", HERE, Signature)
    assert "No module named 'no_such_framework'" in caught.value.message
    assert caught.value.phase == "importing tiny"


def test_a_result_of_the_wrong_shape_is_an_error(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(body("return {'inputs': 3}"))
    with (
        worker(plugin) as open_worker,
        pytest.raises(errors.PluginError, match=r"Signature\.inputs"),
    ):
        open_worker.call("inspect", HERE, Signature)


def test_a_full_disk_is_an_output_error(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(body("open('/dev/full', 'w').write('x' * 10**6)"))
    with worker(plugin) as open_worker, pytest.raises(errors.OutputError, match="No space left"):
        open_worker.call("inspect", HERE, Signature)


def test_a_function_that_the_plugin_lacks_is_unsupported(make_plugin: MakePlugin) -> None:
    with (
        worker(make_plugin(body("pass"))) as open_worker,
        pytest.raises(errors.UnsupportedError, match="no function `compile`"),
    ):
        open_worker.call("compile", HERE, Signature)


def test_the_worker_goes_on_after_an_error(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(
        body(
            "if source.format == 'bad': raise ValueError('bad')",
            "return Signature(inputs=(), outputs=())",
        )
    )
    with worker(plugin) as open_worker:
        with pytest.raises(errors.PluginError):
            open_worker.call("inspect", Source(location="/", format="bad"), Signature)
        assert open_worker.call("inspect", HERE, Signature) == EMPTY


# --- reproduce.sh


def test_reproduce_runs_the_same_call_again(make_plugin: MakePlugin, tmp_path: Path) -> None:
    plugin = make_plugin(
        body(
            f"open({str(tmp_path / 'calls')!r}, 'a').write(source.format)",
            "return Signature(inputs=(), outputs=())",
        )
    )
    with worker(plugin) as open_worker:
        open_worker.call("inspect", HERE, Signature)
        script = open_worker.folder / "reproduce.sh"
    again = subprocess.run([script], capture_output=True, text=True, timeout=30, check=True)
    assert (tmp_path / "calls").read_text() == "tinytiny"
    answers = [json.loads(line) for line in again.stdout.splitlines()]
    assert answers[-1] == {"id": 1, "ok": {"response": "response-1.json"}}


def test_reproduce_holds_no_secret_of_the_environment(
    make_plugin: MakePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret-value")
    plugin = make_plugin(
        body("assert 'SOME_TOKEN' in os.environ", "return Signature(inputs=(), outputs=())")
    )
    with worker(plugin) as open_worker:
        open_worker.call("inspect", HERE, Signature)
        for path in open_worker.folder.iterdir():
            assert "secret-value" not in path.read_text()
        assert open_worker.folder.stat().st_mode & 0o077 == 0
    assert os.environ["SOME_TOKEN"] == "secret-value"
