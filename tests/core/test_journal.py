"""A journal keeps what it has recorded, whatever happens to the process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploykit.errors import OutputError, UsageError
from deploykit.journal import Journal

ROOT = Path(__file__).resolve().parent.parent.parent

# Does five steps, each leaving a line in a file of its own, and waits inside the one it is told to.
STEPS = """
import sys, time
from pathlib import Path
from deploykit.journal import Journal

journal, trace, stop = Journal(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for name in "abcde":
    if journal.finished(name) is None:
        with trace.open("a") as stream:
            stream.write(name)
        if name == stop:
            time.sleep(60)
        journal.record(name, {"result": name.upper()})
print([journal.finished(name)["result"] for name in "abcde"])
"""


def start(journal: Path, trace: Path, stop: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STEPS, str(journal), str(trace), stop],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_redoes_no_finished_step(tmp_path: Path) -> None:
    journal, trace = tmp_path / "runs" / "journal.jsonl", tmp_path / "trace"
    for stop, done in [("c", "abc"), ("d", "abccd")]:
        with start(journal, trace, stop) as process:
            until = time.monotonic() + 10
            while (trace.read_text() if trace.exists() else "") != done:
                assert time.monotonic() < until, "the step was never reached"
                time.sleep(0.01)
            process.kill()
    with start(journal, trace, "none") as process:
        said, _ = process.communicate(timeout=10)
    assert said == "['A', 'B', 'C', 'D', 'E']\n"
    # each step once, and those that were cut short once more
    assert trace.read_text() == "abccdde"


def test_a_record_is_on_the_disk_when_record_returns(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.record("a", {"n": 1})
        lines = (tmp_path / "j").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"journal": 1},
        {"key": "a", "value": {"n": 1}},
    ]


def test_the_last_record_of_a_key_counts(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.record("a", {"n": 1})
        journal.record("a", {"n": 2})
        assert journal.finished("b") is None
    with Journal(tmp_path / "j") as journal:
        assert journal.finished("a") == {"n": 2}


@pytest.mark.parametrize("torn", ['{"key": "b", "val', "{", '{"key": "b", "value": {}}', "\0" * 40])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.record("a", {"n": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    with Journal(path) as journal:
        assert journal.finished("a") == {"n": 1}
        assert journal.finished("b") is None
        assert path.read_bytes() == whole
        journal.record("c", {"n": 3})
    with Journal(path) as journal:
        assert journal.finished("c") == {"n": 3}


def test_a_journal_cut_anywhere_opens_with_what_was_whole(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        for number in range(3):
            journal.record(str(number), {"n": number})
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with Journal(path) as journal:
            found = [n for n in range(3) if journal.finished(str(n)) == {"n": n}]
            assert found == list(range(max(0, whole[:length].count(b"\n") - 1)))


def test_damage_before_the_last_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.record("a", {})
        journal.record("b", {})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "damaged", lines[2], ""]))
    with pytest.raises(UsageError, match=r"line 2 of the journal .* is damaged"):
        Journal(path)


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"journal": 99}\n')
    with pytest.raises(UsageError, match="has version 99"):
        Journal(tmp_path / "j")


def test_two_processes_cannot_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(UsageError, match="in use by another process"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()


def test_what_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the journal"):
        Journal(tmp_path / "file" / "j")
    with pytest.raises(UsageError, match="not a regular file"):
        Journal("/dev/null")


def test_a_disk_that_fills_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from deploykit.errors import OutputError
from deploykit.journal import Journal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(sys.argv[1]) as journal:
    journal.record("a", {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        journal.record("b", {"long": "x" * 200})
    except OutputError as error:
        print(error.message)
    assert journal.finished("b") is None
    journal.record("c", {})
"""
    path = tmp_path / "j"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"cannot write the journal `{path}`: File too large\n"
    with Journal(path) as journal:
        assert [name for name in "abc" if journal.finished(name) is not None] == ["a", "c"]
