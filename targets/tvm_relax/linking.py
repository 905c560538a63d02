"""What links TVM's object files to a library: a C++ compiler, or that of the wheel `ziglang`.

A machine with nothing but Python and pip has no linker; the wheel brings one, and it links for
every architecture. For this machine the system's own compiler comes first. For another one the
wheel does: it links against the oldest C library that the architecture has, while a
`TRIPLE-g++` takes its own, which may be newer than the board's.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import PluginError

# Releases of the GNU C library: the first that has the architecture, or what all in use have.
OLDEST_GLIBC = {"x86_64": "2.17", "aarch64": "2.17", "riscv64": "2.27"}


def linker(triple: str | None = None) -> str | None:
    """Return what will link for `triple` (None: this machine), None where there is nothing."""
    zig = "ziglang" if importlib.util.find_spec("ziglang") else None
    if triple is None:
        return system_compiler() or zig
    return zig or cross_compiler(triple)


def system_compiler() -> str | None:
    """Return the C++ compiler of the system, None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def cross_compiler(triple: str) -> str | None:
    """Return the GNU compiler for `triple` (`aarch64-linux-gnu-g++`), None where there is none.

    Distributions leave out the vendor of `aarch64-unknown-linux-gnu`.
    """
    parts = triple.split("-")
    names = [triple, "-".join([parts[0], *parts[-2:]])]
    return next((found for name in names if (found := shutil.which(f"{name}-g++"))), None)


def compile_function(triple: str | None = None) -> Callable[..., None] | None:
    """Return what `export_library` takes as `fcompile`: None for its own way."""
    chosen = linker(triple)
    if chosen != "ziglang":
        if triple is None or chosen is None:
            return None
        return _linking([chosen])
    zig = [sys.executable, "-m", "ziglang", "cc"]
    return _linking(zig if triple is None else [*zig, "-target", _zig_triple(triple)])


def _zig_triple(triple: str) -> str:
    """Return zig's words for LLVM's triple: no vendor, and the release of the C library."""
    parts = triple.split("-")
    abi = parts[-1]
    if abi == "gnu" and parts[0] in OLDEST_GLIBC:
        abi = f"gnu.{OLDEST_GLIBC[parts[0]]}"
    return f"{parts[0]}-linux-{abi}"


def _linking(command: list[str]) -> Callable[..., None]:
    def link(
        output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any
    ) -> None:
        whole = [*command, "-shared", "-fPIC", "-o", output, *objects, *(options or ()), "-lm"]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise PluginError(f"linking failed ({whole[0]}): {done.stderr.strip()[-500:]}")

    return link


def share(source: Path, output: Path, *, options: Sequence[str] = ()) -> None:
    """Make a shared library for this machine of one C file."""
    own = shutil.which("gcc") or shutil.which("clang")
    command = [own] if own else [sys.executable, "-m", "ziglang", "cc"]
    _linking(command)(str(output), [str(source)], options)
