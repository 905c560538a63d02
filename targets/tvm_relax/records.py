"""What tuning found, kept and used again: MetaSchedule's records, per kind of processor and TVM.

A record is the trace of a kernel's order of loops and how long it took. Two places hold some: the
folder of deploykit's cache, which tuning on this machine fills, and the starter records that come
with deploykit, made by `benchmarks/tvm_tuning.py --starter`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from deploykit.home import home

if TYPE_CHECKING:
    import tvm
    from deploykit._plugins.targets.tvm_relax.machine import Processor

STARTERS = Path(__file__).parent / "records"
WORKLOADS, RECORDS = "workloads.json", "records.json"


def kind_of(processor: Processor) -> str:
    """Return the class of processors that share records: `x86_64-16x32`, lanes by registers."""
    return f"{processor.architecture}-{processor.lanes}x{processor.registers}"


def folder(processor: Processor) -> Path:
    """Return where the records of this very processor and TVM lie; it may not exist."""
    import tvm

    target = processor.target.export()
    key = json.dumps(
        [str(target.get("mcpu", "")), sorted(processor.cpu_flags), str(target.get("num-cores"))]
    )
    name = f"{kind_of(processor)}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return home() / "tvm" / tvm.__version__ / name


class Records:
    """The records for one processor: asked by kernel, added to as they are made."""

    def __init__(self, processor: Processor) -> None:
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        try:
            self.folder, self._lock = _locked(folder(processor))
        except OSError:
            # a cache that cannot be written to: what is found serves this run alone
            self._scratch = tempfile.TemporaryDirectory(prefix="deploykit-tvm-")
            self.folder, self._lock = _locked(Path(self._scratch.name))
        self._own = _database(self.folder)
        self._starter = _starter(kind_of(processor))
        self._target = processor.target

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.close()
        if self._scratch is not None:
            self._scratch.cleanup()

    def seconds(self, kernel: tvm.ir.IRModule) -> float | None:
        """Return the best time that was measured of the kernel on this processor, if any."""
        found = self._best(self._own, kernel)
        return None if found is None else float(min(float(each) for each in found.run_secs))

    def trials(self, kernel: tvm.ir.IRModule) -> int:
        """Return how many orders of the kernel's loops were measured on this processor."""
        if not self._own.has_workload(kernel):
            return 0
        return len(self._own.get_top_k(self._own.commit_workload(kernel), 1 << 20))

    def trace(self, kernel: tvm.ir.IRModule) -> Any:
        """Return the trace of the best order of the kernel's loops, None where none is known.

        What was measured here comes before what comes with deploykit.
        """
        for database in (self._own, self._starter):
            found = self._best(database, kernel) if database is not None else None
            if found is not None:
                return found.trace
        return None

    def add(self, kernel: tvm.ir.IRModule, trace: Any, seconds: float) -> None:
        """Write a record to the file, at once."""
        from tvm.s_tir.meta_schedule.database import TuningRecord

        self._own.commit_tuning_record(
            TuningRecord(trace, self._own.commit_workload(kernel), [seconds], self._target)
        )

    @staticmethod
    def _best(database: Any, kernel: tvm.ir.IRModule) -> Any:
        if not database.has_workload(kernel):
            return None
        return next(iter(database.get_top_k(database.commit_workload(kernel), 1)), None)


def best_of(processor: Processor) -> dict[str, list[Any]]:
    """Return the two tables of the starter records: the best record of each workload measured here."""
    tables: dict[str, list[Any]] = {WORKLOADS: [], RECORDS: []}
    place = folder(processor)
    lines = [
        [json.loads(line) for line in (place / name).read_text(encoding="utf-8").splitlines()]
        for name in (WORKLOADS, RECORDS)
    ]
    best: dict[int, Any] = {}
    for workload, record in lines[1]:
        seconds = min(float(each) for each in record[1])
        if workload not in best or seconds < min(float(each) for each in best[workload][1]):
            best[workload] = record
    for workload, record in best.items():
        tables[RECORDS].append([len(tables[WORKLOADS]), record])
        tables[WORKLOADS].append(lines[0][workload])
    return tables


def _locked(wanted: Path) -> tuple[Path, IO[bytes]]:
    """Return the folder `wanted`, or the next that no other process is writing to, and its lock.

    Records name their workload by the number of a line: two writers would spoil each other's.
    """
    number = 0
    while True:
        place = wanted if number == 0 else wanted.with_name(f"{wanted.name}.{number}")
        place.mkdir(parents=True, exist_ok=True)
        lock = (place / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return place, lock
        except BlockingIOError:
            lock.close()
            number += 1


def _database(place: Path) -> Any:
    """Return the database in the folder; damaged files are set aside, for records can be made again."""
    from tvm.error import InternalError
    from tvm.s_tir.meta_schedule.database import JSONDatabase

    paths = [place / WORKLOADS, place / RECORDS]
    for path in paths:
        _mend(path)
    try:
        return JSONDatabase(*map(str, paths))
    except (InternalError, ValueError, IndexError, KeyError, TypeError, RuntimeError):
        for path in paths:
            if path.exists():
                path.replace(path.with_suffix(".damaged"))
        return JSONDatabase(*map(str, paths))


def _mend(path: Path) -> None:
    """Cut off a last line that an interrupted process left half written."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as stream:
            stream.truncate(data.rfind(b"\n") + 1)


def _starter(kind: str) -> Any:
    """Return the records that come with deploykit for this kind of processor, None without any."""
    from tvm.s_tir import meta_schedule

    source = STARTERS / f"{kind}.json.xz"
    if not source.is_file():
        return None
    tables = json.loads(lzma.decompress(source.read_bytes()))
    with tempfile.TemporaryDirectory(prefix="deploykit-tvm-") as place:
        for name in (WORKLOADS, RECORDS):
            Path(place, name).write_text(
                "".join(json.dumps(line) + "\n" for line in tables[name]), encoding="utf-8"
            )
        read = meta_schedule.database.JSONDatabase(f"{place}/{WORKLOADS}", f"{place}/{RECORDS}")
        # into memory: the files go
        kept = meta_schedule.database.MemoryDatabase()
        for record in read.get_all_tuning_records():
            kept.commit_workload(record.workload.mod)
            kept.commit_tuning_record(record)
        return kept
