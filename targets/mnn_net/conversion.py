"""From ONNX to MNN's file by the converter's C extension, with nothing of MNN's Python around it."""

from __future__ import annotations

import json
import mmap
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit._plugins.targets.mnn_net import session

from deploykit.errors import SourceError, UnsupportedError
from deploykit.onnx_graph import every_node, foreign_operators, set_inputs
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import onnx

# Without an explicit stride MNN divides by zero in a pooling that has pads (seen with 3.6.1).
_STRIDED = ("AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool")

# In a process of its own, because it ends the process on a model that it cannot read. The extension
# is all there is of MNN in it: what posts to the network is Python beside it (`session.runtime`).
_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv[1:])"

# An integer model as ONNX writes it: the converter ends itself on biases between these.
_QUANTISED = {"DequantizeLinear", "QuantizeLinear"}

_REASON = re.compile(r"[Ff]ailed|[Ee]rror|not support|terminate|what\(\)")
_UNSUPPORTED = re.compile(r"These Op Not Support: (.+)")
_OPERATOR = re.compile(r"ONNX::(\w+)")


class Model:
    """The ONNX model in memory."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self.operators = {node.op_type for node in every_node(proto.graph)}

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


def convert(source: Path, result: Path, model: Model, *, half: bool) -> None:
    """Write the ONNX file `source` as MNN's file `result`, its weights in float16 if `half`.

    Raises UnsupportedError naming the operators that MNN lacks, or with the converter's last words.
    """
    command = ["-f", "ONNX", "--modelFile", source.name, "--MNNModel", result.name]
    # `--keepInputFormat 1` gives wrong values after pooling (seen with 3.6.1): its default does not
    command += ["--bizCode", "deploykit", *(["--fp16"] if half else [])]
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CONVERT, "mnnconvert", *command],
        cwd=source.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    print(done.stdout, flush=True)  # the worker's log
    if done.returncode == 0 and result.is_file() and result.stat().st_size:
        _make_reproducible(result)
        return
    raise _gave_up(done, model)


def _gave_up(done: subprocess.CompletedProcess[str], model: Model) -> UnsupportedError:
    missing = _UNSUPPORTED.search(done.stdout)
    if missing:
        operators = tuple(sorted(set(_OPERATOR.findall(missing.group(1)))))
        return UnsupportedError(
            f"target mnn cannot take operators {', '.join(operators)} as this model uses them",
            operators=operators,
        )
    lines = [line.strip() for line in done.stdout.splitlines() if _REASON.search(line)]
    said = lines[-1][:300] if lines else "it gives no reason"
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else "no file"
    operators = tuple(sorted(model.operators & _QUANTISED)) if done.returncode < 0 else ()
    blamed = f"; it is known to fail on {', '.join(operators)}" if operators else ""
    return UnsupportedError(
        f"target mnn: MNN's converter cannot take this model ({how}): {said}{blamed}",
        operators=operators,
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


def _make_reproducible(path: Path) -> None:
    """Replace the random identifier that the converter gives each file by one that never changes."""
    mnn = session.runtime()
    drawn = str(mnn.get_model_uuid(str(path))).encode()
    fixed = str(uuid.UUID(int=0)).encode()
    if len(drawn) != len(fixed):
        return
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        place = content.find(drawn)
        if place >= 0 and content.find(drawn, place + 1) < 0:
            content[place : place + len(fixed)] = fixed
