"""What links TVM's object files to a library: the system's C++ compiler, else that of `ziglang`.

A machine with nothing but Python and pip has no linker; the wheel `ziglang` brings one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from deploykit.errors import PluginError


def linker() -> str | None:
    """Return what will link: TVM's own choice of compiler, in its order, else `ziglang`."""
    return system_compiler() or ("ziglang" if importlib.util.find_spec("ziglang") else None)


def system_compiler() -> str | None:
    """Return the C++ compiler of the system, None where there is none."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def compile_function() -> Callable[..., None] | None:
    """Return what `export_library` takes as `fcompile`: None for its own way."""
    return None if system_compiler() else _link_with_zig


def _link_with_zig(
    output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any
) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-o", output]
    done = subprocess.run(
        [*command, *objects, *(options or ()), "-lm"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise PluginError(f"linking with ziglang failed: {done.stderr.strip()[-500:]}")
