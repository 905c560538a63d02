"""Runs that survive an interruption."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deploykit.errors import OutputError, UsageError
from deploykit.runs import KEPT, resumable

ROOT = Path(__file__).resolve().parents[2]


def folders(home: Path) -> list[Path]:
    return [path for path in (home / "runs").iterdir() if path.is_dir()]


def test_finished_steps_are_not_done_again_after_a_failure(own_home: Path) -> None:
    calls: list[str] = []

    def work(name: str, fails: bool) -> None:
        with resumable(["x", 1], resume=True) as run:

            def step() -> dict[str, int]:
                calls.append(name)
                return {"value": 7}

            assert run.step("first", step) == {"value": 7}
            if fails:
                raise RuntimeError("broken off")

    with pytest.raises(RuntimeError):
        work("one", fails=True)
    work("two", fails=False)
    assert calls == ["one"]
    assert folders(own_home) == [], "a run that succeeded leaves nothing"


def break_off(*asked: object, resume: bool = False) -> bool:
    """Finish one step and fail; return whether that step had been finished before."""
    before = False
    with contextlib.suppress(RuntimeError), resumable(list(asked), resume=resume) as run:
        before = run.journal.finished("first") is not None
        run.step("first", lambda: {"value": 1})
        raise RuntimeError
    return before


def test_without_resume_it_starts_afresh(own_home: Path) -> None:
    assert not break_off("x")
    assert not break_off("x")
    assert break_off("x", resume=True)


def test_another_question_is_another_run(own_home: Path) -> None:
    assert not break_off("x")
    assert not break_off("y", resume=True)


def test_a_run_in_which_nothing_finished_leaves_nothing(own_home: Path) -> None:
    with pytest.raises(KeyboardInterrupt), resumable(["x"], resume=False):
        raise KeyboardInterrupt
    assert folders(own_home) == []


def test_two_processes_do_not_do_the_same_work(own_home: Path) -> None:
    with (
        resumable(["x"], resume=False),
        pytest.raises(UsageError, match="another deploykit"),
        resumable(["x"], resume=False),
    ):
        pass


def test_old_unfinished_runs_are_removed(own_home: Path) -> None:
    for number in range(KEPT + 3):
        break_off("x", number)
    with resumable(["last"], resume=False):
        pass
    assert len(folders(own_home)) == KEPT


def test_a_killed_process_can_be_resumed(own_home: Path, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal, sys
            from deploykit.runs import resumable

            def step(name):
                print(name, flush=True)
                return {"name": name}

            with resumable(["killed"], resume=True) as run:
                run.step("first", lambda: step("first"))
                if sys.argv[1] == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                run.step("second", lambda: step("second"))
        """)
    )

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, mode],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    died = run("die")
    assert died.returncode == -signal.SIGKILL
    assert died.stdout.split() == ["first"]
    went_on = run("live")
    assert went_on.returncode == 0, went_on.stderr
    assert went_on.stdout.split() == ["second"]


def test_a_result_that_is_no_longer_good_is_made_again(own_home: Path) -> None:
    break_off("x")
    with resumable(["x"], resume=True) as run:
        assert run.step("first", lambda: {"value": 2}) == {"value": 1}
    break_off("x")
    with resumable(["x"], resume=True) as run:
        made = run.step("first", lambda: {"value": 2}, still_good=lambda old: old["value"] > 1)
        assert made == {"value": 2}


def test_what_a_failed_step_worked_on_is_kept_but_not_resumed(own_home: Path) -> None:
    with resumable(["x"], resume=False) as run:
        run.step("first", lambda: {"value": 1})
        (run.folder / "model").touch()
        run.keep()
    (folder,) = folders(own_home)
    assert [path.name for path in folder.iterdir()] == ["model"]
    with resumable(["x"], resume=True) as run:
        assert run.journal.finished("first") is None
    assert folders(own_home) == []


def test_a_run_at_work_is_not_removed_however_old(own_home: Path) -> None:
    with resumable(["old"], resume=False) as run:
        run.step("first", lambda: {"value": 1})
        os.utime(run.folder, (0, 0))
        for number in range(KEPT + 2):
            break_off("x", number)
        with resumable(["last"], resume=False):
            pass
        assert run.folder.is_dir()


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYKIT_HOME", "/proc/nowhere")
    with pytest.raises(OutputError, match="/proc/nowhere") as caught, resumable([], resume=False):
        pass
    assert "DEPLOYKIT_HOME" in caught.value.hint


def test_a_run_that_ends_while_another_cleans_up_is_no_error(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing of the folder and the look at each, a process next door removes its own."""
    listed, is_folder, gone = Path.iterdir, Path.is_dir, "0123456789abcdef"

    def with_one_gone(folder: Path) -> list[Path]:
        return [*listed(folder), folder / gone]

    monkeypatch.setattr(Path, "iterdir", with_one_gone)
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name == gone or is_folder(path))
    with resumable(["x"], resume=False) as run:
        run.step("first", lambda: {"value": 1})
    assert not (own_home / "runs" / gone).exists()
