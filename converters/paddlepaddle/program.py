"""A Paddle program of any age as a PIR document (JSON), with the sizes of every tensor inferred.

Everything goes through Paddle itself: the old protobuf programs are translated, older PIR files are
brought to today's version, and sizes come from Paddle's symbolic shape inference, so that a
dimension of an output carries the name of the input's axis that it equals.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.paddlepaddle import ragged
from deploykit._plugins.converters.paddlepaddle.files import ModelFiles
from deploykit._plugins.converters.paddlepaddle.symbols import name_of, parse_shapes

from deploykit import progress
from deploykit.errors import SourceError, UnsupportedError
from deploykit.protocol import Dimension, Signature, TensorSpec

Json = dict[str, Any]

DTYPES = {
    "t_bool": "bool",
    "t_ui8": "uint8",
    "t_i8": "int8",
    "t_i16": "int16",
    "t_i32": "int32",
    "t_i64": "int64",
    "t_f16": "float16",
    "t_bf16": "bfloat16",
    "t_f32": "float32",
    "t_f64": "float64",
}


LEGACY_INTERPOLATIONS = {
    f"{mode}_interp" for mode in ("linear", "bilinear", "trilinear", "nearest", "bicubic")
}

LEGACY_CONVOLUTIONS = ("conv2d_transpose", "conv3d_transpose", "depthwise_conv2d_transpose")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A program as the file has it: unknown sizes are None. `stored` and `needed` name parameters."""

    files: ModelFiles
    document: Json
    inputs: tuple[TensorSpec, ...]
    stored: list[str]
    needed: list[str]

    @property
    def convolutional(self) -> bool:
        """Whether four-dimensional inputs are images."""
        return any("conv2d" in op["#"] for op in top_level(self.document))


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """A program whose tensors have the sizes that follow from those of the inputs."""

    document: Json
    signature: Signature


def import_paddle() -> Any:
    """Import Paddle without its log on stderr (it warns once per tensor of unknown size)."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    progress.phase("importing paddle")
    import paddle

    return paddle


def load(files: ModelFiles) -> Loaded:
    """Read the model's graph and check its parameters.

    Raises SourceError where either is damaged, UnsupportedError where Paddle cannot translate it.
    """
    paddle = import_paddle()
    progress.phase("reading the Paddle program")
    stored: list[str] | None = None
    if files.format == "paddle/pir":
        pir = _read_pir(paddle, files)
    else:
        pir, stored = _translate(paddle, files)
    path = files.scratch / "program.json"
    paddle.base.core.serialize_pir_program(pir, str(path))
    document: Json = json.loads(path.read_text())
    needed = [op["A"][3] for op in top_level(document) if op["#"] == "p" and op["OA"][0]]
    return Loaded(
        files=files,
        document=document,
        inputs=tuple(_spec(op, op["O"][0]) for op in top_level(document) if _is_input(op)),
        stored=needed if stored is None else stored,
        needed=needed,
    )


def infer(loaded: Loaded, shapes: dict[str, tuple[Dimension, ...]]) -> Inferred:
    """Give the inputs `shapes` and let Paddle infer every other tensor's sizes.

    Where Paddle cannot (an operator without a rule), the sizes of the file stay.
    """
    document = copy.deepcopy(loaded.document)
    for op in top_level(document):
        if _is_input(op):
            dims = [size if isinstance(size, int) else -1 for size in shapes[input_name(op)]]
            op["O"][0]["TT"]["D"][1] = dims
            for attribute in op["A"]:
                if attribute["N"] == "shape":
                    attribute["AT"]["D"] = dims
    symbols = _symbolic_shapes(document, loaded.files.scratch)
    names: dict[str, str] = {}
    inputs = []
    for op, found in zip(top_level(document), symbols, strict=True):
        if _is_input(op):
            spec = _spec(op, op["O"][0])
            shape = shapes[spec.name]
            inputs.append(TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape))
            if found and len(found) == 1:
                names |= {
                    symbol: size
                    for symbol, size in zip(found[0], shape, strict=True)
                    if isinstance(size, str) and isinstance(symbol, str)
                }
    outputs = []
    for op, found in zip(top_level(document), symbols, strict=True):
        results = [tensor for result in results_of(op) for tensor in _tensors(result["TT"])]
        if found is not None and len(found) == len(results):
            for tensor, symbolic in zip(results, found, strict=True):
                if len(tensor[1]) == len(symbolic):
                    tensor[1] = [size if isinstance(size, int) else -1 for size in symbolic]
        if op["#"].endswith(".fetch"):
            spec = _spec(op, op["O"][0])
            shape = spec.shape or ()
            if found and len(found) == 1 and len(found[0]) == len(shape):
                shape = tuple(
                    size if isinstance(size, int) else name_of(size, names) for size in found[0]
                )
            outputs.append(TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape))
    return Inferred(
        document=document, signature=Signature(inputs=tuple(inputs), outputs=tuple(outputs))
    )


def top_level(document: Json) -> list[Json]:
    """Return the operations of the program's outermost block, in order."""
    block: list[Json] = document["program"]["regions"][0]["blocks"][0]["ops"]
    return block


def every_operation(document: Json) -> Iterator[Json]:
    """Yield all operations, also those within branches and loops."""
    for block in every_block(document):
        yield from block


def every_block(document: Json) -> Iterator[list[Json]]:
    """Yield the operations of each block: the program's, then those of branches and loops."""
    waiting = [document["program"]]
    while waiting:
        for region in waiting.pop().get("regions", ()):
            for block in region["blocks"]:
                yield block["ops"]
                waiting += [op for op in block["ops"] if op.get("regions")]


def results_of(op: Json) -> list[Json]:
    """Return the results of `op` (a parameter has one, written without a list)."""
    results = op["O"]
    return results if isinstance(results, list) else [results]


def input_name(op: Json) -> str:
    """Return the `name` attribute of a `data`, `feed` or `fetch` operation."""
    return next(str(item["AT"]["D"]) for item in op["A"] if item["N"] == "name")


def _is_input(op: Json) -> bool:
    return str(op["#"]).endswith((".data", ".feed"))


def _tensors(kind: Json) -> list[list[Any]]:
    """Return `[dtype, dims, layout, …]` of each dense tensor in a result's type."""
    if kind["#"].endswith(".t_dtensor"):
        return [kind["D"]]
    if kind["#"].endswith(".t_vec"):
        return [tensor for item in kind["D"] for tensor in _tensors(item)]
    return []


def _spec(op: Json, result: Json) -> TensorSpec:
    name = input_name(op)
    kind = result["TT"]
    if not kind["#"].endswith(".t_dtensor"):
        raise UnsupportedError(f"`{name}` is no dense tensor but {kind['#']}")
    short = kind["D"][0]["#"].rpartition(".")[2]
    if short not in DTYPES:
        raise UnsupportedError(
            f"`{name}` has a dtype that ONNX models cannot exchange: {short[2:]}"
        )
    shape = tuple(None if size < 0 else size for size in kind["D"][1])
    return TensorSpec(name=name, dtype=DTYPES[short], shape=shape)


def _read_pir(paddle: Any, files: ModelFiles) -> Any:
    try:
        document = json.loads(files.graph.read_bytes())
        magic = document["base_code"]["magic"]
        if magic != "pir":
            raise KeyError(magic)
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"`{files.graph}` is no PIR program: {error}",
            hint="the file is truncated, or is another JSON file",
        ) from error
    pir = paddle.static.Program()
    try:
        paddle.base.core.deserialize_pir_program(str(files.graph), pir)
    except Exception as error:  # Paddle raises RuntimeError, ValueError and its own kinds
        raise SourceError(f"Paddle cannot read `{files.graph}`: {first_line(error)}") from error
    return pir


def read_old(paddle: Any, files: ModelFiles) -> Any:
    """Return a program of Paddle 1 or 2 as Paddle reads it; call within its guard for old programs.

    Raises SourceError where it is damaged or has no outputs.
    """
    try:
        old = paddle.static.Program.parse_from_string(files.graph.read_bytes())
        types = {op.type for op in old.global_block().ops}
    except Exception as error:  # Paddle raises RuntimeError, ValueError and its own kinds
        raise SourceError(
            f"Paddle cannot read `{files.graph}`: {first_line(error)}",
            hint="the file is truncated or is no Paddle program",
        ) from error
    if "fetch" not in types:
        raise SourceError(
            f"`{files.graph}` is a training program: it names no inputs and outputs",
            hint="export it with `paddle.static.save_inference_model`",
        )
    return old


def read_ragged(files: ModelFiles) -> ragged.RaggedProgram | None:
    """Return the program where one of its inputs is ragged, None where none is.

    Raises SourceError as `load` does, UnsupportedError where it cannot be converted.
    """
    if files.format == "paddle/pir":
        return None
    paddle = import_paddle()
    with paddle.pir_utils.OldIrGuard():
        return ragged.read(paddle, read_old(paddle, files), files.graph)


def _translate(paddle: Any, files: ModelFiles) -> tuple[Any, list[str]]:
    """Return an old program as PIR, and the names of all parameters that its files hold."""
    with paddle.pir_utils.OldIrGuard():
        old = read_old(paddle, files)
        block = old.global_block()
        _modernise(block)
        kinds = paddle.base.core.VarDesc.VarType
        stored = [
            var.name
            for var in old.list_vars()
            if var.persistable
            and var.type not in (kinds.FEED_MINIBATCH, kinds.FETCH_LIST, kinds.RAW, kinds.READER)
        ]
        try:
            return paddle.pir.translate_to_pir(old.desc), stored
        except Exception as error:
            raise UnsupportedError(
                f"Paddle cannot translate `{files.graph.name}` to its new representation: "
                f"{first_line(error)}"
            ) from error


def _modernise(block: Any) -> None:
    """Write Paddle 1's operators as Paddle 2 does, where its translator lacks the old form.

    Interpolations got a new name and a scale per axis, transposed convolutions an output padding.
    """
    for op in block.ops:
        if op.type in LEGACY_INTERPOLATIONS:
            scale = float(op.attr("scale") or 0)
            rank = len(block.var(op.input("X")[0]).shape) - 2
            op.desc.remove_attr("scale")
            op.desc.set_type(f"{op.type}_v2")
            op.desc._set_attr("scale", [scale] * rank if scale > 0 else [])
        elif op.type in LEGACY_CONVOLUTIONS and not op.has_attr("output_padding"):
            op.desc._set_attr("output_padding", [0] * len(op.attr("strides")))


def _symbolic_shapes(document: Json, scratch: Path) -> list[list[list[int | str]] | None]:
    """Return, per top-level operation, the symbolic shapes of its results, None where unknown."""
    paddle = import_paddle()
    progress.phase("inferring shapes")
    path = scratch / "shaped.json"
    path.write_text(json.dumps(_without_sizes(document)))
    pir = paddle.static.Program()
    paddle.base.core.deserialize_pir_program(str(path), pir)
    native = paddle.base.libpaddle.pir
    unknown: list[list[list[int | str]] | None] = [None] * len(top_level(document))
    try:
        manager = native.PassManager()
        native.infer_symbolic_shape_pass(manager, pir)
        manager.run(pir)
    except Exception as error:  # an operator without a rule: PADDLE_THROW, of no one class
        progress.phase(f"inferring shapes stopped: {first_line(error)}")
        return unknown
    operations = pir.global_block().ops
    if len(operations) != len(unknown):
        return unknown
    return [parse_shapes(op.attrs().get("sym_shape_str", "")) for op in operations]


def _without_sizes(document: Json) -> Json:
    """Return a copy in which only inputs and parameters have sizes.

    Inference does not read the others; Paddle logs a warning for each that it does not confirm.
    """
    bare = copy.deepcopy(document)
    for op in top_level(bare):
        if op["#"] != "p" and not _is_input(op) and op["I"]:
            for result in results_of(op):
                for tensor in _tensors(result["TT"]):
                    tensor[1] = [-1] * len(tensor[1])
    return bare


def first_line(error: BaseException) -> str:
    """Return what a Paddle error says, without its stacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "Error:" in line or line.startswith("(")]
    return (said or lines or [type(error).__name__])[0]
