"""What readers make of damaged and hostile files: an error with a name, never a crash, a hang or gigabytes.

    python benchmarks/fuzz_readers.py [--models FOLDER] [--inputs 10000] [--seed 0] [FORMAT ...] [--json]

Takes the smallest real model of each format that is read whole, damages a copy of its files (cut short, bits flipped,
numbers made huge, pieces repeated, swapped or zeroed) and reads it: with `deploykit.inspect`, and
with the converter's own `inspect` where that needs no framework. Each format runs in a process of
its own that may allocate 1 GB beyond what it holds at the start, and work five seconds of a
processor on each input. Anything
but a result or one of deploykit's own errors counts as a failure and is kept in the JSON with the
seed that makes it again. The exit code is 1 where there was any.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

# the checkout's own deploykit, installed or not
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deploykit import plugins
from deploykit.errors import DeploykitError
from deploykit.formats import inspect
from deploykit.protocol import Source
from deploykit.requirements import unmet

ROOT = Path(__file__).resolve().parent.parent
ALLOWED_BYTES = 1 << 30
ALLOWED_S = 5
STUCK_S = 60
"""Without a word from a reader: it waits for something, or is where no signal is heard."""
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


class Hang(BaseException):
    """Raised by the timer; no reader may catch it by catching Exception."""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return `content` after one to four kinds of damage."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        at = chance.randrange(len(data))
        match chance.randrange(6):
            case 0:
                del data[at:]
            case 1:
                for _ in range(chance.randint(1, 16)):
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 2:
                number = chance.choice(HUGE)
                width = chance.choice((4, 8))
                order = chance.choice("<>")
                value = number & ((1 << 8 * width) - 1)
                data[at : at + width] = struct.pack(order + "IQ"[width == 8], value)
            case 3:
                length = chance.randint(1, 64)
                data[at:at] = data[at : at + length] * chance.randint(1, 50)
            case 4:
                other, length = chance.randrange(len(data)), chance.randint(1, 256)
                piece = data[at : at + length]
                data[at : at + length] = data[other : other + length]
                data[other : other + length] = piece
            case _:
                length = chance.randint(1, 256)
                data[at : at + length] = bytes([chance.choice((0, 255, 127, 128))] * length)
    return bytes(data)


def smallest(models: Path) -> dict[str, Path]:
    """Return the smallest model folder of each format below `models`, one that is read if any is."""
    found: dict[str, tuple[bool, int, Path]] = {}
    folders = [path for path in models.glob("*/*") if path.is_dir()]
    for folder in folders:
        try:
            seen = inspect(folder)
        except DeploykitError:
            continue
        own = _own_inspect(seen.format)
        refused = _read(str(folder), seen.format, own) == "refused"
        rank = (refused, sum(seen.files.values()), folder)
        found[seen.format] = min(found.get(seen.format, rank), rank)
    return {format: folder for format, (_, _, folder) in sorted(found.items())}


def work(format: str, folder: Path, inputs: int, seed: int, results: Any) -> None:
    """Read `inputs` damaged copies of the model in `folder` and put what happened to `results`."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("golden")
    )
    originals = {path.relative_to(folder): path.read_bytes() for path in files}
    own = _own_inspect(format)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name
        shutil.copytree(folder, copy)
        location = inspect(copy).location
        _read(location, format, own)  # imports what it needs before memory is limited
        used = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWED_BYTES, -1))
        signal.signal(signal.SIGPROF, _hung)
        counts = {"read": 0, "refused": 0}
        failures = []
        slowest = 0.0
        for number in range(inputs):
            chance = random.Random(f"{format} {seed} {number}")
            name = chance.choice(list(originals))
            (copy / name).write_bytes(damaged(originals[name], chance))
            results.put((format, "at", number))
            begun = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, ALLOWED_S)
            try:
                counts[_read(location, format, own)] += 1
            except BaseException as error:
                signal.setitimer(signal.ITIMER_PROF, 0)
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                failures.append(f"input {number}: {type(error).__name__} at {where}: {error}"[:300])
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, time.process_time() - begun)
            (copy / name).write_bytes(originals[name])
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put(
        (format, "done", {**counts, "failures": failures, "slowest_s": slowest, "peak_bytes": peak})
    )


def _own_inspect(format: str) -> Any:
    for plugin in plugins.plugins("converter"):
        if format in plugin.formats and not unmet(plugin, isolated=False):
            return importlib.import_module(plugin.module).inspect
    return None


def _read(location: str, format: str, own: Any) -> str:
    try:
        seen = inspect(location)
        if own is not None and seen.format == format:
            own(Source(location=seen.location, format=format))
    except DeploykitError:
        return "refused"
    return "read"


def _hung(*_: object) -> None:
    raise Hang(f"no end after {ALLOWED_S} s of work")


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def fuzz(format: str, folder: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Run `work` in a process of its own; a crash becomes a failure that names the input."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=work, args=(format, folder, inputs, seed, results))
    process.start()
    at, heard = -1, time.monotonic()
    while True:
        try:
            _, kind, value = results.get(timeout=1)
            heard = time.monotonic()
        except Exception:  # queue.Empty, or a message cut off by a crash
            if process.is_alive() and time.monotonic() - heard < STUCK_S:
                continue
            if process.is_alive():  # in native code, where no signal is heard
                process.kill()
                process.join()
                return {"failures": [f"input {at}: no end after {STUCK_S} s"], "inputs": at + 1}
            code = process.exitcode
            return {"failures": [f"input {at}: the process ended with {code}"], "inputs": at + 1}
        if kind == "at":
            at = value
        else:
            process.join()
            return {"inputs": inputs, **value}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("formats", nargs="*", help="such as caffe2/net; default: all")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for format, folder in smallest(given.models).items():
        if not given.formats or format in given.formats:
            found[format] = fuzz(format, folder, given.inputs, given.seed)
            if not given.json:
                print(_line(format, found[format]), flush=True)
    if given.json:
        print(json.dumps(found, indent=2))
    return 1 if any(one["failures"] for one in found.values()) else 0


def _line(format: str, one: dict[str, Any]) -> str:
    text = f"{format:28} {one['inputs']:>7} inputs, {len(one['failures'])} failures"
    if "peak_bytes" in one:
        text += f", {one['read']} still read, {one['refused']} refused"
        text += f", slowest {one['slowest_s']:.2f} s, peak {one['peak_bytes'] >> 20} MiB"
    return "\n".join([text, *(f"  {failure}" for failure in one["failures"][:5])])


if __name__ == "__main__":
    sys.exit(main())
