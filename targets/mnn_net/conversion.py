"""From ONNX to MNN's file by the converter's C extension, with nothing of MNN's Python around it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from deploykit._plugins.targets.mnn_net import session

from deploykit.errors import SourceError, UnsupportedError
from deploykit.onnx_graph import every_node, foreign_operators, set_inputs
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import onnx

# Without an explicit stride MNN divides by zero in a pooling that has pads (seen with 3.6.1).
_STRIDED = ("AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool")

_UNSUPPORTED = re.compile(r"These Op Not Support: (.+)")
_OPERATOR = re.compile(r"ONNX::(\w+)")


class Model:
    """The ONNX model in memory."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto

    def write(self, path: Path, inputs: tuple[TensorSpec, ...]) -> Path:
        """Write the model with exactly these inputs, large weights beside it, and return its path."""
        import onnx

        set_inputs(self._proto, inputs)
        _write_strides(self._proto)
        if self._proto.ByteSize() < 2**31:
            path.write_bytes(self._proto.SerializeToString())
        else:
            copy = onnx.ModelProto()
            copy.CopyFrom(self._proto)
            onnx.save(copy, path, save_as_external_data=True, location=f"{path.name}.data")
        return path

    def node_names(self) -> str:
        """Return JSON: each value that a node computes, with the node's name (its own, if it has none)."""
        named = {
            output: node.name or output
            for node in every_node(self._proto.graph)
            for output in node.output
            if output
        }
        return json.dumps(named, indent=0, sort_keys=True, ensure_ascii=False) + "\n"


def read(path: str) -> Model:
    """Read the ONNX file with its weights.

    Raises SourceError where it is no model, UnsupportedError for operators of other makers.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise SourceError(f"`{path}` holds no ONNX model")
    foreign = foreign_operators(model.graph)
    if foreign:
        raise UnsupportedError(
            f"target mnn cannot take operators {', '.join(foreign)}", operators=foreign
        )
    return Model(model)


def convert(source: Path, result: Path, *, half: bool) -> None:
    """Write the ONNX file `source` as MNN's file `result`, its weights in float16 if `half`.

    Raises UnsupportedError naming the operators that MNN lacks, or with the converter's last words.
    """
    session.runtime()  # first: the extension needs its libraries, and nothing else of it
    import _tools

    command = ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(result)]
    # `--keepInputFormat 1` gives wrong values after pooling (seen with 3.6.1): its default does not
    command += ["--bizCode", "deploykit", *(["--fp16"] if half else [])]
    with tempfile.TemporaryFile() as said:
        with _written_to(said):
            _tools.mnnconvert(command)
        said.seek(0)
        text = said.read().decode("utf-8", errors="replace")
    print(text, flush=True)  # the worker's log
    if result.is_file() and result.stat().st_size:
        _make_reproducible(result)
        return
    missing = _UNSUPPORTED.search(text)
    if missing:
        operators = tuple(sorted(set(_OPERATOR.findall(missing.group(1)))))
        raise UnsupportedError(
            f"target mnn cannot take operators {', '.join(operators)}", operators=operators
        )
    lines = [line.strip() for line in text.splitlines() if "failed" in line or "rror" in line]
    raise UnsupportedError(
        f"MNN's converter cannot take this model: {lines[0] if lines else 'it gives no reason'}"
    )


def _write_strides(model: onnx.ModelProto) -> None:
    """Write out the strides of 1 that nodes leave to the default, one per axis of the kernel."""
    import onnx

    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    for node in every_node(model.graph):
        if node.op_type not in _STRIDED:
            continue
        given = {attribute.name: attribute for attribute in node.attribute}
        if "strides" in given:
            continue
        axes = len(given["kernel_shape"].ints) if "kernel_shape" in given else 0
        axes = axes or ranks.get(node.input[1] if len(node.input) > 1 else "", 2) - 2
        if axes > 0:
            node.attribute.append(onnx.helper.make_attribute("strides", [1] * axes))


@contextlib.contextmanager
def _written_to(stream: BinaryIO) -> Iterator[None]:
    """Send what native code writes to stdout and stderr to `stream`: it names what it lacks there."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    for number, _ in kept:
        os.dup2(stream.fileno(), number)
    try:
        yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


def _make_reproducible(path: Path) -> None:
    """Replace the random identifier that the converter gives each file by one that never changes."""
    mnn = session.runtime()
    drawn = str(mnn.get_model_uuid(str(path))).encode()
    content = path.read_bytes()
    if len(drawn) == 36 and content.count(drawn) == 1:
        fixed = str(uuid.UUID(int=0)).encode()
        path.write_bytes(content.replace(drawn, fixed))
