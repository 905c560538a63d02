"""Every way in which a worker's process can end, and that nothing of it stays behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit import errors
from deploykit.family import is_running
from deploykit.outcomes import outcome_of
from deploykit.plugins import Plugin
from deploykit.processes import marked
from deploykit.protocol import (
    Signature,
    Source,
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


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def mark_of(open_worker: Worker) -> str:
    return open_worker._job.mark


# --- a process that dies


@pytest.mark.parametrize(
    ("line", "name", "frame"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV", "in string_at"),
        ("os.abort()", "SIGABRT", "converters/tiny.py:8 in inspect"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", ""),
        ("os.kill(os.getpid(), signal.SIGFPE)", "SIGFPE", "converters/tiny.py:8 in inspect"),
    ],
)
def test_a_crash_names_signal_phase_and_frame(
    make_plugin: MakePlugin, line: str, name: str, frame: str
) -> None:
    plugin = make_plugin(body("progress.phase('in native code')", line))
    with worker(plugin) as open_worker:
        with pytest.raises(errors.StepSignal) as caught:
            open_worker.call("inspect", HERE, Signature)
        assert not open_worker.alive
        with pytest.raises(errors.PluginError, match="has ended already"):
            open_worker.call("inspect", HERE, Signature)
    error = caught.value
    assert (error.signal, error.phase) == (name, "in native code")
    assert frame in error.frame
    assert str(outcome_of(error)) == f"signal({name})"
    assert Path(error.log).is_file()


@pytest.mark.parametrize("status", [0, 3])
def test_an_exit_without_an_answer_is_an_error(make_plugin: MakePlugin, status: int) -> None:
    with (
        worker(make_plugin(body(f"os._exit({status})"))) as open_worker,
        pytest.raises(errors.PluginError, match=f"exit status {status} while inspect"),
    ):
        open_worker.call("inspect", HERE, Signature)


@pytest.mark.parametrize(
    "lines",
    [
        ["raise MemoryError"],
        ["raise RuntimeError('std::bad_alloc')"],
        ["return [0] * 10**15"],
        ['os.write(2, b"what():  std::bad_alloc\\n")', "os.abort()"],
    ],
)
def test_a_failed_allocation_is_out_of_memory(make_plugin: MakePlugin, lines: list[str]) -> None:
    with (
        worker(make_plugin(body(*lines))) as open_worker,
        pytest.raises(errors.StepOutOfMemory) as caught,
    ):
        open_worker.call("inspect", HERE, Signature)
    assert outcome_of(caught.value).kind == "out-of-memory"


# --- limits


@pytest.mark.parametrize(
    "line",
    [
        "time.sleep(60)",
        # holds the interpreter's lock: nothing written in Python runs in the worker meanwhile
        "import ctypes; ctypes.PyDLL(None).sleep(60)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); time.sleep(60)",
    ],
)
def test_the_time_limit_ends_anything(make_plugin: MakePlugin, line: str) -> None:
    plugin = make_plugin(body("progress.phase('stuck')", line))
    with worker(plugin, Limits(timeout_s=0.3)) as open_worker:
        mark = mark_of(open_worker)
        begun = time.monotonic()
        with pytest.raises(errors.StepTimeout) as caught:
            open_worker.call("inspect", HERE, Signature)
        assert time.monotonic() - begun < 3
        assert list(marked(mark)) == []
    assert caught.value.phase == "stuck"
    if "pthread_sigmask" not in line:
        assert caught.value.frame == "converters/tiny.py:8 in inspect"
    assert outcome_of(caught.value).kind == "timeout"


def test_a_worker_that_starts_too_slowly_is_a_timeout(
    make_plugin: MakePlugin, tmp_path: Path
) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    with pytest.raises(errors.StepTimeout, match="while starting"):
        Worker(make_plugin(body("pass")), python=slow, label="step", limits=Limits(timeout_s=0.3))


def test_the_memory_limit_counts_descendants(make_plugin: MakePlugin) -> None:
    child = "import time; kept = bytearray(b'x') * 300 * 2**20; time.sleep(60)"
    plugin = make_plugin(
        body(
            "progress.phase('eating')",
            f"subprocess.run([sys.executable, '-c', {child!r}])",
        )
    )
    with worker(plugin, Limits(memory_bytes=200 * 2**20, timeout_s=30)) as open_worker:
        mark = mark_of(open_worker)
        with pytest.raises(errors.StepOutOfMemory, match="limit of 200 MiB") as caught:
            open_worker.call("inspect", HERE, Signature)
        assert list(marked(mark)) == []
    assert caught.value.phase == "eating"


def test_within_the_memory_limit_nothing_happens(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(body("time.sleep(0.3)", "return Signature(inputs=(), outputs=())"))
    with worker(plugin, Limits(memory_bytes=500 * 2**20)) as open_worker:
        assert open_worker.call("inspect", HERE, Signature) == EMPTY


# --- a broken protocol


@pytest.mark.parametrize(
    "line",
    [
        "for n in range(3, 12): os.path.exists(f'/proc/self/fd/{n}') and junk(n, b'junk\\n')",
        "for n in range(3, 12): os.path.exists(f'/proc/self/fd/{n}') and junk(n, b'half a line')",
        "for n in range(3, 12): os.path.exists(f'/proc/self/fd/{n}') and junk(n, b'x' * 500_000)",
        "for n in range(3, 12): os.path.exists(f'/proc/self/fd/{n}') and junk(n, b'[1]\\n')",
        "for n in range(3, 12): os.path.exists(f'/proc/self/fd/{n}') and junk(n, b'{\"id\": 9}\\n')",
    ],
)
def test_junk_in_the_channel_is_an_error_not_a_hang(make_plugin: MakePlugin, line: str) -> None:
    plugin = make_plugin(
        "import contextlib, os\n"
        "def junk(number, text):\n"
        "    with contextlib.suppress(OSError): os.write(number, text)\n"
        + body(line, "return Signature(inputs=(), outputs=())")
    )
    with worker(plugin, Limits(timeout_s=10)) as open_worker:
        with pytest.raises(errors.PluginError, match="broke the protocol"):
            open_worker.call("inspect", HERE, Signature)
        assert not open_worker.alive


def test_a_closed_channel_is_an_error_not_a_hang(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(body("os.closerange(3, 64)", "time.sleep(60)"))
    with worker(plugin) as open_worker, pytest.raises(errors.PluginError, match="end of file"):
        open_worker.call("inspect", HERE, Signature)


def test_a_python_that_is_none_is_an_error(make_plugin: MakePlugin, tmp_path: Path) -> None:
    plugin = make_plugin(body("pass"))
    with pytest.raises(errors.PluginError, match="found '-I -X utf8"):
        Worker(
            plugin, python=Path("/bin/echo").resolve(), label="step"
        )  # echo prints its arguments
    with pytest.raises(errors.UnavailableError, match="cannot start"):
        Worker(plugin, python=tmp_path / "no-such-python", label="step")


# --- no process outlives its worker

STRAYS = """
import os, subprocess, sys, time
from pathlib import Path
from deploykit.protocol import Signature

def daemon(reading, writing):
    # leaves session, group and parent, as a daemon does
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            time.sleep(300)
        os._exit(0)
    os.wait()
    return int(os.read(reading, 20))

def inspect(source):
    sleep = ["sleep", "300"]
    pids = [
        subprocess.Popen(sleep).pid,
        subprocess.Popen(sleep, start_new_session=True).pid,
        subprocess.Popen(["env", "-i", *sleep], start_new_session=True).pid,
        daemon(*os.pipe()),
    ]
    time.sleep(0.1)  # until `env` has become `sleep`
    Path(source.location).write_text(" ".join(map(str, [os.getpid(), os.getppid(), *pids])))
    if source.format == "crash":
        os.abort()
    if source.format == "hang":
        time.sleep(300)
    return Signature(inputs=(), outputs=())
"""


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_running(pid)]


def pids_in(path: Path) -> list[int]:
    """The worker, its guard, and the four that it started."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def test_no_descendant_outlives_a_worker_that_ends_well(
    make_plugin: MakePlugin, tmp_path: Path
) -> None:
    source = Source(location=str(tmp_path / "pids"), format="end")
    with worker(make_plugin(STRAYS)) as open_worker:
        open_worker.call("inspect", source, Signature)
        pids = pids_in(tmp_path / "pids")
        assert pids[0] == open_worker.pid
        assert alive(pids) == pids
    assert alive(pids) == []


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_no_descendant_outlives_a_worker_that_fails(
    make_plugin: MakePlugin, tmp_path: Path, how: str
) -> None:
    source = Source(location=str(tmp_path / "pids"), format=how)
    with worker(make_plugin(STRAYS), Limits(timeout_s=0.8)) as open_worker:
        with pytest.raises(errors.StepError):
            open_worker.call("inspect", source, Signature)
        # nothing is left even before the worker is closed
        pids = pids_in(tmp_path / "pids")
        assert len(pids) == 6
        assert alive(pids) == []


def test_a_guard_that_is_killed_takes_its_worker_along(
    make_plugin: MakePlugin, tmp_path: Path
) -> None:
    source = Source(location=str(tmp_path / "pids"), format="end")
    with worker(make_plugin(STRAYS)) as open_worker:
        open_worker.call("inspect", source, Signature)
        pids = pids_in(tmp_path / "pids")
        os.kill(pids[1], signal.SIGKILL)
        assert wait_until(lambda: alive(pids[:2]) == [])
        with pytest.raises(errors.StepSignal, match="SIGKILL"):
            open_worker.call("inspect", source, Signature)
        assert list(marked(mark_of(open_worker))) == []
    for pid in alive(pids):  # the one with an empty environment, whom nobody can know any more
        os.kill(pid, signal.SIGKILL)


PARENT = """
import sys
from pathlib import Path
from deploykit.plugins import Plugin
from deploykit.protocol import Signature, Source
from deploykit.steps import Worker

plugin = Plugin(kind="converter", name="tiny", path=Path(), module=sys.argv[1], summary="",
    formats=(), devices=(), functions=("inspect",), requires_python="", dependencies=(),
    settings={}, newest_opset=None, block="")
worker = Worker(plugin, python=Path(sys.executable), label="step")
print(worker._job.scratch, worker.folder, flush=True)
worker.call("inspect", Source(location=sys.argv[2], format="hang"), Signature)
"""


def start_parent(plugin: Plugin, pids: Path) -> tuple[subprocess.Popen[str], Path, Path]:
    """Return a process that waits for a worker, the scratch and the job folder."""
    root = Path(__file__).resolve().parent.parent.parent
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, plugin.module, str(pids)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
    )
    assert parent.stdout is not None
    scratch, folder = parent.stdout.readline().split()
    assert wait_until(lambda: len(pids_in(pids)) == 6)
    return parent, Path(scratch), Path(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_parent_ends_everything(
    make_plugin: MakePlugin, tmp_path: Path, number: signal.Signals
) -> None:
    parent, scratch, folder = start_parent(make_plugin(STRAYS), tmp_path / "pids")
    pids = pids_in(tmp_path / "pids")
    assert scratch.is_dir()
    assert alive(pids) == pids
    with parent:
        parent.send_signal(number)
    assert wait_until(lambda: alive(pids) == [])
    assert wait_until(lambda: not scratch.exists())
    assert (folder / "log.txt").exists()


def test_an_interrupt_ends_the_worker_and_removes_its_data(
    make_plugin: MakePlugin, tmp_path: Path
) -> None:
    parent, scratch, folder = start_parent(make_plugin(STRAYS), tmp_path / "pids")
    with parent:
        parent.send_signal(signal.SIGINT)
        _, said = parent.communicate(timeout=10)
    assert "KeyboardInterrupt" in said
    assert alive(pids_in(tmp_path / "pids")) == []
    assert not scratch.exists()
    assert {path.name for path in folder.iterdir()} == {
        *("lock", "log.txt", "request-1.json", "reproduce.sh")
    }


def test_a_worker_that_nobody_closed_ends_with_its_object(make_plugin: MakePlugin) -> None:
    open_worker = worker(make_plugin(body("pass")))
    mark = mark_of(open_worker)
    assert list(marked(mark))
    del open_worker
    gc.collect()
    assert list(marked(mark)) == []
