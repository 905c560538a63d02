"""paddle2onnx in a process of its own: it aborts, or returns nothing, where it cannot go on."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.paddlepaddle.files import ModelFiles
from deploykit._plugins.converters.paddlepaddle.operators import without_mapping
from deploykit._plugins.converters.paddlepaddle.program import Loaded

from deploykit.errors import PluginError, UnsupportedError

TOO_LARGE = 2 * 1000**3
"""paddle2onnx returns one protobuf message, which cannot hold more."""


def export(document: dict[str, Any], loaded: Loaded, opset: int) -> bytes:
    """Return the ONNX model that paddle2onnx makes of the PIR `document`.

    Raises UnsupportedError naming the operator that it was at when it gave up, PluginError where
    it ended without a model and without a reason.
    """
    # imported here, in the parent, so that the child has nothing to load
    import paddle2onnx.paddle2onnx_cpp2py_export as native

    files: ModelFiles = loaded.files
    parameters: Path | None = files.parameters(loaded.stored, loaded.needed)
    if parameters is not None and parameters.stat().st_size > TOO_LARGE:
        raise UnsupportedError(
            f"`{parameters}` is larger than 2 GB, which paddle2onnx cannot export",
            hint="export the model in parts, or with weights in float16",
        )
    scratch: Path = files.scratch
    graph, log, output = (scratch / name for name in ("mended.json", "log.txt", "model.onnx"))
    for earlier in (log, output):
        earlier.unlink(missing_ok=True)
    graph.write_text(json.dumps(document))
    code = _in_child(
        lambda: output.write_bytes(
            native.export(
                str(graph),
                str(parameters or ""),
                opset,
                True,  # a newer opset where a mapping needs it
                True,  # verbose: names each operator, which is how a failure is located
                False,  # its own checker; ours is stricter and comes after the repairs
                True,
                True,
                {},
                "onnxruntime",
                "",
                "",
                False,
            )
        ),
        log,
    )
    text = log.read_text(errors="replace")
    exported = output.read_bytes() if code == 0 and output.is_file() else b""
    if exported:
        return exported
    sys.stderr.write(text[-4000:])
    supported = set(native.get_all_supported_operators_pir())
    raise _failure(code, text, without_mapping(document, supported))


def _in_child(work: Any, log: Path) -> int:
    """Run `work` in a forked child, its output in `log`; return the exit code, negative for a signal.

    Forking is safe here: the child calls native code that starts no threads, and never returns to
    Python's own shutdown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            try:
                work()
                code = 0
            except BaseException as error:  # SystemExit too: the exporter uses it for failures
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return os.waitstatus_to_exitcode(status)


def _failure(code: int, text: str, missing: tuple[str, ...]) -> UnsupportedError | PluginError:
    if "unsupported operators" in text and missing:
        return UnsupportedError(
            f"paddle2onnx has no mapping for {', '.join(missing)}", operators=missing
        )
    said = re.findall(r"\[OP: (pd_op\.\w+)\]\s*(.+)", text)
    if said:
        operator, why = said[-1]
        sized = re.search(r"static|fixed|unknown", why)
        return UnsupportedError(
            f"paddle2onnx cannot export the operator `{operator}`: {why.strip()}",
            operators=(operator,),
            hint="give the sizes of the inputs, for example --input image:float32[1,3,224,224]"
            if sized
            else "",
        )
    started = re.findall(r"Start export ([\w.]+)", text)
    finished = re.findall(r"Finish export ([\w.]+)", text)
    reasons = [
        line.strip()
        for line in text.splitlines()
        if "[ERROR]" in line or re.match(r"\w*Error: |\(\w+\) ", line.strip())
    ]
    reason = next((line for line in reasons if "FatalError" not in line), "")
    if len(started) > len(finished):
        return UnsupportedError(
            f"paddle2onnx cannot export the operator `{started[-1]}`{f': {reason}' if reason else ''}",
            operators=(started[-1],),
        )
    how = f"died of {signal.Signals(-code).name}" if code < 0 else "returned no model"
    return PluginError(
        f"paddle2onnx {how}{f': {reason}' if reason else ''}", phase="exporting with paddle2onnx"
    )
