"""Job folders: private, locked, few."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit import jobs
from deploykit.errors import OutputError
from deploykit.jobs import Job


def names(home: Path) -> set[str]:
    return {path.name for path in (home / "jobs").iterdir()}


def fill(job: Job) -> None:
    job.log.write_text("said\n")
    job.write("request-1.json", "{}")
    job.file("feed.npz").write_bytes(b"x")
    job.file("samples.bin").write_bytes(b"x")
    job.file("request-2.json.tmp").write_bytes(b"x")
    (job.scratch / "deep").mkdir()
    (job.scratch / "deep" / "file").write_bytes(b"x")


def test_a_job_that_ends_well_keeps_no_data(own_home: Path) -> None:
    job = Job("convert a model/with $pecial signs")
    fill(job)
    job.close(failed=False)
    assert {path.name for path in job.folder.iterdir()} == {"lock", "log.txt", "request-1.json"}
    assert not job.scratch.exists()
    assert job.folder.name[16:-9] == "convert-a-model-with-pecial-signs"


def test_a_job_that_failed_keeps_what_explains_it(own_home: Path) -> None:
    job = Job("x")
    fill(job)
    job.close(failed=True)
    assert {path.name for path in job.folder.iterdir()} == {
        *("lock", "log.txt", "request-1.json", "feed.npz", "samples.bin")
    }
    assert not job.scratch.exists()


def test_a_huge_log_is_cut_to_its_end(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_LARGE_BYTES", 4000)
    job = Job("x")
    job.log.write_text("a" * 5000 + "the end")
    job.close(failed=True)
    text = job.log.read_text()
    assert text.startswith("[the beginning was left out]\na")
    assert text.endswith("the end")
    assert len(text) < 1100


def test_the_newest_jobs_are_kept_and_those_in_use(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "KEPT", 3)
    used = Job("in-use")
    old = own_home / "jobs" / "20200101-000000-old-1"
    old.mkdir()
    (old / "lock").touch()
    made = []
    for number in range(5):
        made.append(Job(f"job-{number}"))
        made[-1].close(failed=False)
    assert not old.exists()
    assert used.folder.exists()
    newest = sorted(job.folder.name for job in made)[-3:]
    assert names(own_home) >= {used.folder.name, *newest[-2:]}
    assert len(names(own_home)) <= 4
    used.close(failed=False)


def test_a_home_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot make the job folder") as caught:
        Job("x")
    assert "DEPLOYKIT_HOME" in caught.value.hint


def test_a_job_folder_is_private_and_its_scratch_path_short(own_home: Path) -> None:
    job = Job("x")
    assert job.folder.stat().st_mode & 0o777 == 0o700
    assert job.scratch.stat().st_mode & 0o777 == 0o700
    assert len(job.scratch.name) < 24
    job.close(failed=False)
