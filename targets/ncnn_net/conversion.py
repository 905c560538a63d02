"""From ONNX to ncnn's two files by pnnx, a program that needs neither Python nor PyTorch."""

from __future__ import annotations

import re
import signal
import subprocess
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.onnx_graph import every_node, foreign_operators, set_inputs
from deploykit.onnx_trial import dynamic_axes
from deploykit.protocol import Signature, TensorSpec

if TYPE_CHECKING:
    import onnx

SOURCE = "model.onnx"
PARAM = "model.ncnn.param"
BIN = "model.ncnn.bin"
_GLUE = "model_ncnn.py"

NO_BATCH = 233
"""pnnx's and ncnn's number for a tensor in which no axis is a batch."""

_MAGIC = "7767517"
_LARGEST = 2**31 - 1
"""Bytes of a protobuf message, the only form in which pnnx takes a model."""

# numpy's name -> pnnx's suffix of a shape
_SUFFIXES = {"float32": "f32", "float16": "f16", "float64": "f64", "int64": "i64", "int32": "i32"}
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")


@dataclass(frozen=True)
class Tensors:
    """The number of the batch axis of each input and output, or NO_BATCH.

    `ignored` is what pnnx says of itself: parameters of operators that it did not take over.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ignored: tuple[str, ...] = ()


class Model:
    """The ONNX model in memory."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self.operators = {node.op_type for node in every_node(proto.graph)}

    def write(self, path: Path, inputs: tuple[TensorSpec, ...]) -> Path:
        """Write the model with exactly these inputs as one file, and return its path."""
        set_inputs(self._proto, inputs)
        _write_products(self._proto)
        path.write_bytes(self._proto.SerializeToString())
        return path


def _write_products(model: onnx.ModelProto) -> None:
    """Write a Gemm that only multiplies as MatMul, which it is.

    pnnx makes of the first a layer that keeps no batch where its input was flattened.
    """
    for node in every_node(model.graph):
        if node.op_type != "Gemm" or len([name for name in node.input if name]) != 2:
            continue
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
        given = {
            each.name: each.f if each.name in ("alpha", "beta") else each.i
            for each in node.attribute
        }
        if {**plain, **given, "beta": 1.0} == plain:
            node.op_type = "MatMul"
            del node.attribute[:], node.input[2:]


def read(path: str) -> Model:
    """Read the ONNX file with its weights.

    Raises SourceError where it is no model, UnsupportedError for operators of other makers and for
    a model beyond 2 GiB.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise SourceError(f"`{path}` holds no ONNX model")
    if model.ByteSize() > _LARGEST:
        raise UnsupportedError("target ncnn cannot take this model: pnnx reads at most 2 GiB")
    foreign = foreign_operators(model.graph)
    if foreign:
        raise UnsupportedError(
            f"target ncnn cannot take operators {', '.join(foreign)}", operators=foreign
        )
    return Model(model)


def convert(
    path: Path,
    model: Model,
    signature: Signature,
    shapes: list[list[tuple[int, ...]]],
    *,
    half: bool,
) -> Tensors:
    """Write ncnn's files beside the ONNX file `path`, and say which axes are batches.

    `shapes` has the sizes of all inputs of each run that the model is known to take. Raises
    UnsupportedError where pnnx gives up or leaves operators for which ncnn has no layer.
    """
    command = [str(_program()), path.name, f"fp16={int(half)}"]
    if dynamic_axes(signature.inputs):
        command.append(f"inputshape={_shapes(signature.inputs, shapes[0])}")
        other = _most_different(shapes)
        if other is not None:
            command.append(f"inputshape2={_shapes(signature.inputs, other)}")
    done = subprocess.run(
        command,
        cwd=path.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)  # the worker's log
    if done.returncode != 0 or not (path.parent / BIN).is_file():
        raise _gave_up(done, model)
    _check_layers((path.parent / PARAM).read_text(encoding="utf-8"), model)
    tensors = _batch_axes((path.parent / _GLUE).read_text(encoding="utf-8"), signature)
    return replace(tensors, ignored=_ignored(done.stdout + done.stderr))


def _ignored(said: str) -> tuple[str, ...]:
    """Return `LSTM activations=(HardSigmoid,Tanh,Tanh)` and the like, each once."""
    found = re.findall(r"ignore (\S+) \S+ param (\S+)", said)
    return tuple(dict.fromkeys(f"{kind} {parameter}" for kind, parameter in found))


def _program() -> Path:
    """Return pnnx's program; importing the package would import PyTorch."""
    found = Path(str(distribution("pnnx").locate_file("pnnx/pnnx")))
    if not found.is_file():
        raise UnavailableError(f"pnnx's program is not at `{found}`")
    return found


def _shapes(inputs: tuple[TensorSpec, ...], sizes: list[tuple[int, ...]]) -> str:
    for spec in inputs:
        if spec.dtype not in _SUFFIXES:
            raise UnsupportedError(
                f"pnnx takes no dynamic sizes for an input of {spec.dtype}: `{spec}`",
                hint="give the sizes of the inputs with --shape",
            )
    return ",".join(
        f"[{','.join(map(str, shape))}]{_SUFFIXES[spec.dtype]}"
        for spec, shape in zip(inputs, sizes, strict=True)
    )


def _most_different(shapes: list[list[tuple[int, ...]]]) -> list[tuple[int, ...]] | None:
    """Return the run whose sizes differ in the most axes from the first run's, None for none."""

    def distance(other: list[tuple[int, ...]]) -> int:
        return sum(
            a != b
            for mine, theirs in zip(shapes[0], other, strict=True)
            for a, b in zip(mine, theirs, strict=True)
        )

    best = max(shapes, key=distance)
    return best if distance(best) else None


def _gave_up(done: subprocess.CompletedProcess[str], model: Model) -> UnsupportedError:
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in done.stderr.splitlines()]
    said = [line for line in lines if re.match(r"ort \w+ failed|.*(not supported|unknown)", line)]
    operators = tuple(sorted(model.operators & set(_CONTROL)))
    why = said[0][:300] if said else "it gives no reason"
    if operators:
        why = f"it cannot take {', '.join(operators)}"
    return UnsupportedError(
        f"target ncnn: pnnx, its converter, cannot take this model ({how}): {why}",
        operators=operators,
    )


def _check_layers(param: str, model: Model) -> None:
    """Raise UnsupportedError for layers of the .param file that ncnn does not have.

    Format: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
    """
    import ncnn

    lines = param.splitlines()
    if not lines or lines[0].strip() != _MAGIC:
        raise UnsupportedError("pnnx wrote no ncnn graph for this model")
    kinds = {line.split()[0] for line in lines[2:] if line.strip()}
    missing = sorted(kind for kind in kinds if ncnn.layer_to_index(kind) < 0)
    if missing:
        operators = tuple(dict.fromkeys(_onnx_word(kind, model) for kind in missing))
        raise UnsupportedError(
            f"target ncnn has no layer for operators {', '.join(operators)}", operators=operators
        )


# pnnx's words where they are not ONNX's own in lower case
_WORDS = {
    "eq": "Equal", "ne": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater",
    "ge": "GreaterOrEqual", "linear": "Gemm", "to": "Cast", "masked_fill": "Where", "logical_and": "And", "logical_or": "Or", "logical_not": "Not",
}  # fmt: skip


def _onnx_word(kind: str, model: Model) -> str:
    """Return the operator of the model that became pnnx's `kind`, or pnnx's word where unsure."""
    last = re.split(r"[.:]+", kind)[-1]
    named = {operator.lower(): operator for operator in model.operators}
    guess = _WORDS.get(last, named.get(last.replace("_", "").lower(), ""))
    return guess if guess in model.operators else kind


def _batch_axes(glue: str, signature: Signature) -> Tensors:
    """Return the batch axes as the Python example that pnnx writes for the model has them."""
    inputs = {
        int(number): int(axis)
        for number, axis in re.findall(
            r'ex\.input\("in(\d+)", ncnn\.Mat\(in\d+\.\w*\(?.*?batch_index=(\d+)\)', glue
        )
    }
    outputs = {
        int(number): int(axis)
        for number, axis in re.findall(r"out(\d+)\.numpy\(.*?batch_index=(\d+)\)", glue)
    }
    if sorted(inputs) != list(range(len(signature.inputs))) or sorted(outputs) != list(
        range(len(signature.outputs))
    ):
        raise UnsupportedError(
            f"pnnx made {len(inputs)} inputs and {len(outputs)} outputs of "
            f"{len(signature.inputs)} and {len(signature.outputs)}"
        )
    return Tensors(
        inputs=tuple(inputs[number] for number in sorted(inputs)),
        outputs=tuple(outputs[number] for number in sorted(outputs)),
    )
