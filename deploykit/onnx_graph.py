"""What targets do to an ONNX graph before they compile it: read, inputs fixed, nodes walked.

This file also runs inside plugin environments: standard library and onnx.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.protocol import Dimension, TensorSpec

if TYPE_CHECKING:
    import onnx


NUMBERS = frozenset(
    ["float16", "float32", "float64", "bool"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)
"""The element types that numpy has too, without strings."""


def read_whole(path: str) -> onnx.ModelProto:
    """Return the model with all its weights. Raises SourceError where the file is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error


def check_dtypes(
    specs: Iterable[TensorSpec], known: Collection[str], *, target: str, hint: str = ""
) -> None:
    """Raise UnsupportedError for the first of `specs` whose element type is not `known`."""
    for spec in specs:
        if spec.dtype not in known:
            raise UnsupportedError(
                f"target {target} takes no {spec.dtype} tensors: `{spec}`", hint=hint
            )


def fixed_inputs(
    inputs: tuple[TensorSpec, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[TensorSpec, ...]:
    """Return `inputs` with the sizes of `shapes`; a named axis has one size wherever it occurs.

    Raises UsageError where a name is unknown, a rank or a fixed size disagrees, or a named axis
    would get two sizes.
    """
    inputs = tuple(_without_negatives(spec) for spec in inputs)
    by_name = {spec.name: spec for spec in inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise UsageError(
                f"the model has no input `{name}`", hint=f"its inputs are {', '.join(by_name)}"
            )
        own = by_name[name].shape
        if own is None:
            continue
        if len(own) != len(shape):
            raise UsageError(f"input `{by_name[name]}` has {len(own)} axes, not {len(shape)}")
        for axis, (dimension, size) in enumerate(zip(own, shape, strict=True)):
            if isinstance(dimension, int) and dimension != size:
                raise UsageError(f"axis {axis} of input `{by_name[name]}` cannot have size {size}")
            if isinstance(dimension, str) and sizes.setdefault(dimension, size) != size:
                raise UsageError(
                    f"axis `{dimension}` cannot have the sizes {sizes[dimension]} and {size} at once"
                )
    return tuple(
        TensorSpec(
            name=spec.name,
            dtype=spec.dtype,
            shape=_fixed(spec.shape, shapes.get(spec.name), sizes),
        )
        for spec in inputs
    )


def _without_negatives(spec: TensorSpec) -> TensorSpec:
    """Return the input with its sizes of -1 as unnamed: some exporters write dynamic axes so."""
    if spec.shape is None or not any(isinstance(size, int) and size < 0 for size in spec.shape):
        return spec
    shape = tuple(None if isinstance(size, int) and size < 0 else size for size in spec.shape)
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape)


def _fixed(
    shape: tuple[Dimension, ...] | None,
    asked: tuple[int, ...] | None,
    sizes: Mapping[str, int],
) -> tuple[Dimension, ...] | None:
    if asked is not None:
        return asked
    if shape is None:
        return None
    return tuple(sizes.get(size, size) if isinstance(size, str) else size for size in shape)


def set_inputs(model: onnx.ModelProto, inputs: tuple[TensorSpec, ...]) -> bool:
    """Make the graph's inputs exactly `inputs`, in place; return whether anything changed.

    Older exporters list every weight as an input too: a default that a caller may override, which
    forbids a compiler to fold it (ONNX Runtime was three times slower for it). Those that
    `inputs` does not name become plain constants. Sizes that are fixed are taken over; shapes
    computed before are dropped where they spoke of other sizes.
    """
    wanted = {spec.name: spec for spec in inputs}
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    kept = [
        value for value in model.graph.input if value.name in wanted or value.name not in constants
    ]
    changed = len(kept) != len(model.graph.input)
    if changed:
        kept = [type(value).FromString(value.SerializeToString()) for value in kept]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        # before version 4 the format wanted every constant among the inputs
        model.ir_version = max(model.ir_version, 4)
    sizes: dict[str, int] = {}
    resized = False
    for value in model.graph.input:
        spec = wanted.get(value.name)
        if spec is None or spec.shape is None or not value.type.HasField("tensor_type"):
            continue
        shape = value.type.tensor_type.shape
        if not value.type.tensor_type.HasField("shape"):
            shape.SetInParent()
            for _ in spec.shape:
                shape.dim.add()
        for dimension, size in zip(shape.dim, spec.shape, strict=True):
            if isinstance(size, int) and dimension.dim_value != size:
                if dimension.dim_param:
                    sizes[dimension.dim_param] = size
                dimension.dim_value = size
                resized = True
    if resized:
        del model.graph.value_info[:]
        for value in model.graph.output:
            for dimension in value.type.tensor_type.shape.dim:
                if dimension.dim_param in sizes:
                    dimension.dim_value = sizes[dimension.dim_param]
    return changed or resized


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the graph's nodes and those of its branches and loops, however deep."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from every_node(inner)


def foreign_operators(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Return the operators, each as `domain.name`, that are not ONNX's own.

    Importers that look at names only would take one of another maker for ONNX's of that name.
    """
    return tuple(
        sorted(
            {
                f"{node.domain}.{node.op_type}"
                for node in every_node(graph)
                if node.domain not in ("", "ai.onnx")
            }
        )
    )
