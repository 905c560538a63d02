"""Processes start clean and end whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploykit.errors import StepTimeout, UnavailableError
from deploykit.family import descendants
from deploykit.processes import (
    MARKER,
    clean_environment,
    end_processes,
    marked,
    run_command,
    tree_resident_bytes,
)
from deploykit.telemetry import TELEMETRY_OFF

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_command_returns_what_it_printed(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = "echo out; echo err >&2; cat; exit 3"
    done = run_command(["sh", "-c", script], timeout_s=10, log=log, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert 0 < done.wall_s < 10
    assert log.read_text() == f"$ sh -c '{script}'\nout\nerr\n"


def test_a_command_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="cannot start `no-such-program`: No such file"):
        run_command(["no-such-program"], timeout_s=1)


def test_a_command_ends_at_its_time_limit_with_its_descendants(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    begun = time.monotonic()
    with pytest.raises(StepTimeout, match=r"did not end within 0\.3 s"):
        run_command(
            ["sh", "-c", f"echo begun; setsid sleep 300 & echo $! > {tmp_path}/pid; sleep 300"],
            timeout_s=0.3,
            log=log,
        )
    assert time.monotonic() - begun < 5
    assert "begun" in log.read_text()
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/exe").exists()


def test_a_daemon_that_keeps_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    # the pause: while it becomes `sleep`, a process has no environment to know it by
    script = f"setsid sleep 300 & echo $! > {tmp_path}/pid; sleep 0.3; echo done"
    done = run_command(["sh", "-c", script], timeout_s=20)
    assert done.stdout == "done\n"
    assert done.wall_s < 10
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/exe").exists()


def test_an_interrupt_ends_the_command(tmp_path: Path) -> None:
    code = (
        "from deploykit.processes import run_command\n"
        f"run_command(['sh', '-c', 'echo $$ > {tmp_path}/pid; sleep 300'], timeout_s=None)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as parent:
        until = time.monotonic() + 10
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        parent.send_signal(signal.SIGINT)
        _, said = parent.communicate(timeout=10)
    assert "KeyboardInterrupt" in said
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/exe").exists()


def test_the_environment_of_a_child_is_clean() -> None:
    own = Path(sys.prefix) / "lib"
    base = {
        "PATH": "/bin",
        "PYTHONPATH": "/poison",
        "PYTHONHOME": "/poison",
        "VIRTUAL_ENV": "/poison",
        "CONDA_PREFIX": "/poison",
        "PIP_TARGET": "/poison",
        "PIP_INDEX_URL": "https://index.example.com",
        "LD_LIBRARY_PATH": f"{own}:/opt/vendor/lib",
        "LD_PRELOAD": f"{own}/libjemalloc.so",
        "OMP_NUM_THREADS": "7",
        "HF_HUB_DISABLE_TELEMETRY": "0",
    }
    expected = {
        "PATH": "/bin",
        "PIP_INDEX_URL": "https://index.example.com",
        "LD_LIBRARY_PATH": "/opt/vendor/lib",
        "OMP_NUM_THREADS": "7",
        **TELEMETRY_OFF,
    }
    assert clean_environment(base) == expected
    assert base["PYTHONPATH"] == "/poison"


def test_threads_are_set_by_every_name() -> None:
    found = clean_environment({"OMP_NUM_THREADS": "7"}, threads=2)
    for name in ("OMP", "MKL", "OPENBLAS", "TVM"):
        assert found[f"{name}_NUM_THREADS"] == "2"


def test_marked_processes_are_found_and_ended() -> None:
    mark = "a-mark-of-this-test"
    with subprocess.Popen(["sleep", "300"], env={**os.environ, MARKER: mark}) as process:
        assert list(marked(mark)) == [process.pid]
        assert list(marked(mark[:-1])) == []
        assert process.pid in descendants(os.getpid())
        end_processes(mark)
        assert process.wait(5) == -signal.SIGKILL
    assert list(marked(mark)) == []


def test_memory_of_a_tree_counts_the_children() -> None:
    code = "import sys; kept = b'x' * 100 * 2**20; print(flush=True); sys.stdin.read()"
    own = tree_resident_bytes(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert tree_resident_bytes(os.getpid()) - own > 90 * 2**20
        assert tree_resident_bytes(os.getpid(), besides=child.pid) - own < 50 * 2**20
        child.kill()
    assert tree_resident_bytes(child.pid) == 0
