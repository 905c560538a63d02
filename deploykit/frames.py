"""The last line of code that a failed step was in, from a traceback or from a crash's dump.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import os
import re
import traceback

_SECTION = re.compile(r"^(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$")
_FRAME = re.compile(r'^  File "(?P<path>.*)", line (?P<line>\d+|\?\?\?) in (?P<name>.+)$')
_LIBRARY = re.compile(r".*/(site-packages|dist-packages|lib/python3\.\d+)/")
_OWN = frozenset({"worker.py", "serving.py", "guard.py"})


def frame_of(error: BaseException) -> str:
    """Return the innermost frame of `error` outside the worker's own code, or an empty text."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _is_own(frame.filename):
            return _text(frame.filename, frame.lineno or 0, frame.name)
    return ""


def frame_in_dump(log: str) -> str:
    """Return the innermost frame in the last dump that `faulthandler` wrote into `log`, or ''.

    Of the thread that crashed; where a thread without Python code did, of the main thread, which
    is dumped last.
    """
    found = ""
    current = False
    lines = log.splitlines()
    for number, line in enumerate(lines):
        section = _SECTION.match(line)
        if section is None or number + 1 == len(lines):
            continue
        if section[1] == "Thread" and current:
            continue  # the dump that follows a crash names its thread once
        frame = _FRAME.match(lines[number + 1])
        if frame is None:
            continue
        current = current or section[1] == "Current thread"
        found = _text(frame["path"], frame["line"], frame["name"])
    return found


def shorten(path: str) -> str:
    """Return `path` as a reader knows it: from the package or the plugin's folder on."""
    inside = _LIBRARY.match(path)
    if inside:
        return path[inside.end() :]
    for folder in ("converters", "targets"):
        head, found, tail = path.rpartition(f"{os.sep}{folder}{os.sep}")
        if found and head:
            return f"{folder}{os.sep}{tail}"
    return path


def _text(path: str, line: int | str, name: str) -> str:
    return f"{shorten(path)}:{line} in {name}"


def _is_own(path: str) -> bool:
    return os.path.dirname(path) == os.path.dirname(__file__) and (  # noqa: PTH120
        os.path.basename(path) in _OWN  # noqa: PTH119
    )
