"""HDF5 files opened for reading, after a look at what the HDF5 library does not survive.

Format: https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html (superblock, global heap).
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import mmap
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HEAP = b"GCOL\x01\0\0\0"
"""How a global heap begins: its signature, version and reserved bytes."""
LEAST_S, BYTES_A_SECOND = 4, 10 << 20
"""Seconds of a processor that reading a file may take: some, and more for its size."""
WAITING_S = 60
"""Beyond those, for a machine that has other work and for slow disks."""
HEADER = 16
"""Bytes of the header of a heap, and of that of an object in it."""


@contextlib.contextmanager
def opened(file: Path | bytes) -> Iterator[Any]:
    """Open a file, or the bytes of one, as `h5py.File`.

    Raises ValueError where a heap of texts is damaged, OSError where the library refuses the file.
    """
    import h5py

    if isinstance(file, bytes):
        check_heaps(file)
        with h5py.File(io.BytesIO(file), "r") as found:
            yield found
        return
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        check_heaps(content)
    with h5py.File(file, "r") as found:
        yield found


def rehearse(read: Callable[[], object], path: Path) -> None:
    """Call `read` in a child process first: the HDF5 library crashes, or never ends, on some files.

    What `read` raises is of no interest here: it will raise it again. Raises ValueError where the
    child is killed, by the library's own fault or after more work than a whole file makes.
    """
    import h5py  # noqa: F401  # here, and not within the child's time

    child = os.fork()
    if child == 0:
        _limit_own_time(LEAST_S + path.stat().st_size // BYTES_A_SECOND)
        with contextlib.suppress(BaseException):
            read()
        os._exit(0)  # no destructors, and nothing of the parent's flushed twice
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise ValueError(f"the HDF5 library does not survive it ({name})")


def _limit_own_time(seconds: int) -> None:
    """Let signals end this process, also in native code, when its time is over or it crashes."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds + WAITING_S)


def check_heaps(content: bytes | mmap.mmap) -> None:
    """Raise ValueError where a global heap has an object that takes no place.

    The library goes from one object to the next by their sizes, and from such a one nowhere, for ever.
    """
    width = _width_of_lengths(content)
    at = content.find(HEAP)
    while at >= 0:
        size = int.from_bytes(content[at + 8 : at + 8 + width], "little")
        end = min(at + size, len(content))
        place = at + HEADER
        while place + HEADER <= end:
            index = int.from_bytes(content[place : place + 2], "little")
            length = int.from_bytes(content[place + 8 : place + 8 + width], "little")
            # the free rest, number zero, counts its own header
            taken = HEADER + (length + 7) // 8 * 8 if index else length
            if taken < HEADER:
                raise ValueError(f"a heap of texts at byte {at} has an object without a size")
            place += taken
        at = content.find(HEAP, at + 1)


def _width_of_lengths(content: bytes | mmap.mmap) -> int:
    """Return how many bytes the file takes for a length, as its superblock says."""
    place = {0: 14, 1: 14, 2: 10, 3: 10}.get(content[8] if len(content) > 14 else 255)
    width = content[place] if place is not None else 8
    return width if width in (2, 4, 8) else 8
