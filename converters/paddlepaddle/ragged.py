"""Programs of Paddle 1 with ragged inputs (LoD tensors): our own operator map, Paddle the reference.

paddle2onnx knows nothing of sequences. Here each ragged input `NAME` stays as it is, rows packed one
behind the other, and gets a companion `NAME.lengths` (int64 [batch]): how many rows belong to each
sequence. Their sum is the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.paddlepaddle import (
    dense_operators,
    files,
    recurrent_operators,
    sequence_operators,
)
from deploykit._plugins.converters.paddlepaddle.sequences import Value

from deploykit.errors import PluginError, UnsupportedError, UsageError
from deploykit.graph_building import GraphBuilder, finish
from deploykit.progress import phase
from deploykit.protocol import ConvertRequest, ConvertResult, Signature, Source, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LENGTHS = ".lengths"
EMIT = {**dense_operators.EMIT, **sequence_operators.EMIT, **recurrent_operators.EMIT}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operator: variables by slot."""

    kind: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RaggedProgram:
    """A program of one block. `ragged` are the inputs with sequences, `parameters` all stored ones."""

    inputs: tuple[TensorSpec, ...]
    ragged: frozenset[str]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    parameters: tuple[str, ...]
    ranks: Mapping[str, int]


def read(paddle: Any, old: Any, path: Path) -> RaggedProgram | None:
    """Return the program `old` (`paddle.static.Program`), None where no input is ragged.

    Raises UnsupportedError where sequences are nested, or an operator has no mapping.
    """
    block = old.global_block()
    fed = sorted((op.attr("col"), op.output("Out")[0]) for op in block.ops if op.type == "feed")
    levels = {name: block.var(name).lod_level for _, name in fed}
    if not any(levels.values()):
        return None
    nested = [name for name, level in levels.items() if level > 1]
    if nested or old.num_blocks > 1:
        raise UnsupportedError(
            f"input `{nested[0]}` of `{path.name}` has sequences of sequences"
            if nested
            else f"`{path.name}` has ragged inputs and branches or loops",
            operators=("feed",) if nested else ("conditional_block",),
            hint="export the model with padded inputs and a later version of Paddle",
        )
    operations = tuple(
        Operation(
            kind=op.type,
            inputs={slot: tuple(op.input(slot)) for slot in op.input_names if op.input(slot)},
            outputs={slot: tuple(op.output(slot)) for slot in op.output_names if op.output(slot)},
            attributes={key: op.attr(key) for key in op.attr_names},
        )
        for op in block.ops
        if op.type not in ("feed", "fetch")
    )
    wrong = [op for op in operations if op.kind not in EMIT]
    if wrong:
        named = ", ".join(
            f"{op.kind} (makes `{next(iter(op.outputs.values()), ('?',))[0]}`)" for op in wrong[:10]
        )
        raise UnsupportedError(
            f"`{path.name}` has ragged inputs, and no ONNX form for the operators {named}",
            operators=tuple(dict.fromkeys(op.kind for op in wrong)),
            hint="export the model with padded inputs and a later version of Paddle",
        )
    kinds = paddle.base.core.VarDesc.VarType
    return RaggedProgram(
        inputs=tuple(
            TensorSpec(
                name=name,
                dtype=str(block.var(name).dtype).rpartition(".")[2],
                shape=tuple(None if size < 0 else size for size in block.var(name).shape),
            )
            for _, name in fed
        ),
        ragged=frozenset(name for name, level in levels.items() if level),
        outputs=tuple(
            name
            for _, name in sorted(
                (op.attr("col"), op.input("X")[0]) for op in block.ops if op.type == "fetch"
            )
        ),
        operations=operations,
        parameters=tuple(
            var.name
            for var in old.list_vars()
            if var.persistable and var.type in (kinds.DENSE_TENSOR, kinds.SELECTED_ROWS)
        ),
        ranks={
            var.name: len(var.shape)
            for var in old.list_vars()
            if var.type in (kinds.DENSE_TENSOR, kinds.SELECTED_ROWS)
        },
    )


def inputs(program: RaggedProgram, source: Source) -> tuple[TensorSpec, ...]:
    """Return the inputs, each ragged one followed by its lengths.

    Raises UsageError for `--input`s that do not fit.
    """
    given = {spec.name: spec for spec in source.inputs}
    found: list[TensorSpec] = []
    for spec in program.inputs:
        own = given.pop(spec.name, None)
        sizes = own.shape if own is not None and own.shape is not None else spec.shape or ()
        if len(sizes) != len(spec.shape or ()) or (own is not None and own.dtype != spec.dtype):
            raise UsageError(f"input `{own}` does not fit: the model has `{spec}`")
        is_ragged = spec.name in program.ragged
        names = [f"{spec.name}_rows" if is_ragged else "batch"]
        names += [f"{spec.name}_{axis}" for axis in range(1, len(sizes))]
        shape = tuple(
            size if size is not None and not (is_ragged and axis == 0) else name
            for axis, (size, name) in enumerate(zip(sizes, names, strict=True))
        )
        found.append(TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape))
        if is_ragged:
            name = f"{spec.name}{LENGTHS}"
            given.pop(name, None)
            found.append(TensorSpec(name=name, dtype="int64", shape=("batch",)))
    if given:
        raise UsageError(
            f"the model has no input `{next(iter(given))}`",
            hint=f"its inputs: {', '.join(spec.name for spec in found)}",
        )
    return tuple(found)


def signature(program: RaggedProgram, source: Source) -> Signature:
    """Return inputs and outputs; the sizes of outputs are left open."""
    return Signature(
        inputs=inputs(program, source),
        outputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=(None,) * program.ranks[name])
            for name in program.outputs
        ),
    )


def convert(
    program: RaggedProgram, model: files.ModelFiles, request: ConvertRequest
) -> ConvertResult:
    """Write the program as ONNX. Raises UnsupportedError where an operator has no form."""
    if request.dynamic:
        raise UsageError(
            "the axes of ragged inputs are dynamic already",
            hint="leave `--dynamic` away",
        )
    phase("mapping the operators")
    build = GraphBuilder(model.graph.stem.strip("_") or "paddle")
    values: dict[str, Value] = {}
    for spec in inputs(program, request.source):
        name = build.input(spec.name, spec.dtype, spec.shape or ())
        if spec.name.endswith(LENGTHS):
            owner = spec.name.removesuffix(LENGTHS)
            values[owner] = values[owner].on(values[owner].name, lengths=name)
        else:
            values[spec.name] = Value(name, len(spec.shape or ()), spec.dtype)
    weights = model.arrays(list(program.parameters))
    for op in program.operations:
        label = next(iter(op.outputs.values()))[0]
        with build.layer(label):
            ins = {
                slot: [_value(build, name, values, weights) for name in names]
                for slot, names in op.inputs.items()
            }
            for slot, value in EMIT[op.kind](build, ins, op.attributes).items():
                if slot in op.outputs:
                    values[op.outputs[slot][0]] = value
    for name in program.outputs:
        value = values[name]
        build.output(name, value.name, value.dtype, (None,) * value.rank)
    lengths = ", ".join(f"`{name}{LENGTHS}`" for name in sorted(program.ragged))
    result: ConvertResult = finish(
        build,
        request,
        repairs=[
            f"ragged inputs became rows and the lengths of their sequences, new inputs: {lengths}"
        ],
        packages=("paddlepaddle", "onnx", "numpy"),
    )
    return result


def _value(
    build: GraphBuilder, name: str, values: dict[str, Value], weights: Mapping[str, Array]
) -> Value:
    if name not in values:
        if name not in weights:
            raise UnsupportedError(
                f"nothing computes the variable `{name}`",
                hint="the program is cut; export it with `save_inference_model`",
            )
        array = weights[name]
        values[name] = Value(
            build.constant(array, name), array.ndim, str(array.dtype), constant=array
        )
    return values[name]


def offsets(lengths: Array, rows: int, name: str) -> list[int]:
    """Return the borders of sequences of `lengths`, as Paddle takes them.

    Raises UsageError where they do not add up to `rows`, PluginError where one of them is zero:
    Paddle's kernels then compute with memory that nobody has written.
    """
    total = int(lengths.sum())
    if total != rows or (lengths < 0).any():
        raise UsageError(
            f"`{name}{LENGTHS}` adds up to {total}, `{name}` has {rows} rows",
            hint="the lengths of the sequences must add up to the number of rows",
        )
    if not lengths.all():
        raise PluginError(f"a sequence of `{name}` is empty, which Paddle does not define")
    borders = [0]
    for length in lengths.tolist():
        borders.append(borders[-1] + int(length))
    return borders
