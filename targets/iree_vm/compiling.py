"""IREE's compiler, a program of its own: what it is asked, and what its messages mean."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploykit.errors import PluginError, StepOutOfMemory, UnsupportedError

# No number may be narrowed behind our back; float64 is in `plugin.py`, for it depends on the model.
EXACT = (
    "--iree-input-demote-f32-to-f16=false",
    "--iree-input-demote-i64-to-i32=false",
    "--iree-opt-numeric-precision-reduction=false",
    "--iree-vm-target-truncate-unsupported-floats=false",
)

# What does not belong in what is deployed: where each operation came from.
PLAIN = ("--iree-vm-bytecode-module-strip-source-map", "--iree-vm-emit-polyglot-zip=false")

# The stack of a kernel; the default of 32 KiB is too small for tiles of unknown sizes. The runtime's
# workers have 128 KiB.
LIMITS = ("--iree-llvmcpu-stack-allocation-limit=65536",)

ADDR_NO_RANDOMIZE = 0x0040000  # linux/personality.h

LIMIT_S = 3600

HINT = "fixed input shapes (--shape) often help"


def run_compiler(arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run `iree-compile` in `folder`; return its exit status and what it wrote to stderr."""
    from iree.compiler.tools.binaries import find_tool

    fixed = None
    if sys.platform == "linux":
        # Its linker lets addresses slip into what it writes; at fixed ones the same model gives the
        # same bytes. A container may forbid it, which does no other harm.
        library = ctypes.CDLL(None)

        def fixed() -> None:
            library.personality(ADDR_NO_RANDOMIZE)

    done = subprocess.run(
        [find_tool("iree-compile"), *arguments],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},  # a link that fails leaves its objects there
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_S,
        check=False,
        preexec_fn=fixed,
    )
    return done.returncode, done.stderr


def described(flags: Sequence[str]) -> str:
    """Return how the compiler describes the device that `flags` name: its own attribute, as text.

    Raises UnsupportedError with the compiler's words where it knows no such device.
    """
    with tempfile.TemporaryDirectory(prefix="deploykit-iree-") as name:
        folder = Path(name)
        (folder / "empty.mlir").write_text("module {}\n", encoding="utf-8")
        code, said = run_compiler(
            ["empty.mlir", *flags, "--compile-to=flow", "-o", "device.mlir"], folder
        )
        if code:
            raise UnsupportedError(f"target iree cannot compile for this device: {_first(said)}")
        return (folder / "device.mlir").read_text(encoding="utf-8")


class KernelError(UnsupportedError):
    """The graph is understood; the code of a kernel could not be made, in the way that was asked."""


def compiled(source: Path, output: Path, flags: Sequence[str], names: Sequence[str]) -> None:
    """Compile the module `source` to the file `output`.

    `names` are those of the ONNX nodes by their number, as `graphs.named_nodes` gave it to them.
    Raises UnsupportedError naming the operator that the compiler could not take (KernelError where
    it understood all, but could not make the code); PluginError where it crashed without a word,
    StepOutOfMemory where the system ended it.
    """
    code, said = run_compiler(
        [source.name, *EXACT, *PLAIN, *LIMITS, *flags, "-o", str(output)], source.parent
    )
    ignored = re.search(r"'(.+?)' is not a recognized (processor|feature)", said)
    if ignored:
        raise UnsupportedError(
            f"target iree cannot compile for this hardware: LLVM knows no {ignored[2]} "
            f"`{ignored[1]}`",
            hint="correct it in the hardware profile",
        )
    if code == 0:
        return
    print(said)  # for the log of the step
    if code == -signal.SIGKILL:
        raise StepOutOfMemory("iree-compile was killed, as the system does when memory runs out")
    how = f"it crashed ({signal.Signals(-code).name}): " if code < 0 else ""
    blamed = _blamed(said)
    if blamed is None:
        what = how.rstrip(": ") or _first(said)
        raise PluginError(f"iree-compile failed on this graph: {what}", hint=HINT)
    operator, number = blamed
    node = f" (node `{names[number]}`)" if number is not None and names[number] else ""
    kind = UnsupportedError if '"onnx.' in said and "torch.operator" in said else KernelError
    raise kind(
        f"target iree cannot compile operator {operator}{node} as this model uses it: "
        f"{how}{_first(said)}",
        hint=HINT,
        operators=(operator,),
    )


def _blamed(said: str) -> tuple[str, int | None] | None:
    """Return the ONNX operator that an error names, and its node's number where it has one."""
    for line in said.splitlines():
        if "error:" not in line:
            continue
        named = re.search(r"onnx\.(\w+)", line)
        placed = re.search(r'"(\w+):(\d+)"', line)
        if placed:
            return (named[1] if named else placed[1]), int(placed[2])
        if named:
            return named[1], None
    # the operation that an error speaks of is printed below it, with its place
    placed = re.search(r'"(\w+):(\d+)"', said)
    return (placed[1], int(placed[2])) if placed else None


def _first(said: str) -> str:
    """Return the first error of the compiler, in one short line."""
    for line in said.splitlines():
        found = re.search(r"error: (?:loc\(.*?\): )?(?:error: )?(.+)", line)
        if found:
            text = re.sub(r"^loc\(.*?\): ", "", found[1])
            return text if len(text) <= 300 else f"{text[:297]}..."
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Please report", "Stack dump"))]
    return lines[0][:300] if lines else "it said nothing"
