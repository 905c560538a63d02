"""Inputs and outputs of an ONNX graph: as it declares them, and as the user wants them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from deploykit.errors import UnsupportedError, UsageError
from deploykit.onnx_file import signature_of
from deploykit.protocol import Dimension, DynamicAxis, Signature, TensorSpec

if TYPE_CHECKING:
    import onnx


def are_tensors(model: onnx.ModelProto) -> bool:
    """Whether every input and output is a dense tensor."""
    return not _others(model)


def read(model: onnx.ModelProto) -> Signature:
    """Return inputs and outputs in the order of the file.

    Raises UnsupportedError where one is a sequence, a map or optional.
    """
    others = _others(model)
    if others:
        name, kind = others[0]
        raise UnsupportedError(
            f"`{name}` is no tensor but a {kind}",
            hint="export the model with plain tensors (scikit-learn: `zipmap=False`)"
            if kind in ("sequence", "map")
            else "export the model with plain tensors",
        )
    return signature_of(model)


def apply(
    model: onnx.ModelProto, given: tuple[TensorSpec, ...], dynamic: tuple[DynamicAxis, ...]
) -> None:
    """Give the inputs the shapes of `given`, then make the axes of `dynamic` dynamic, in place.

    Fixing an axis that has a name fixes every axis of that name that the user does not mention.
    Shapes of outputs and inner values are forgotten where an input changed, to be inferred anew.
    Raises UsageError for an unknown input, another dtype, rank or axis.
    """
    before = read(model)
    specs = {spec.name: spec for spec in before.inputs}
    shapes = {spec.name: spec.shape for spec in before.inputs}
    fixed: dict[str, int] = {}
    for spec in given:
        own = specs.get(spec.name)
        if own is None:
            raise _unknown(spec.name, list(specs))
        if spec.dtype != own.dtype:
            raise UsageError(
                f"input `{spec.name}` is {own.dtype} in the model, not {spec.dtype}",
                hint="feed it what the model takes; an ONNX graph computes in its own dtypes",
            )
        if spec.shape is None:
            continue
        if own.shape is not None and len(own.shape) != len(spec.shape):
            raise UsageError(
                f"input `{spec.name}` has {len(own.shape)} axes in the model, "
                f"`{spec}` has {len(spec.shape)}"
            )
        for old, new in zip(own.shape or (), spec.shape, strict=False):
            if isinstance(old, str) and isinstance(new, int):
                _fix(fixed, old, new)
        shapes[spec.name] = spec.shape
    mentioned = {spec.name for spec in given}
    for name, shape in shapes.items():
        if name not in mentioned and shape is not None:
            shapes[name] = tuple(
                fixed.get(size, size) if isinstance(size, str) else size for size in shape
            )
    for axis in dynamic:
        if axis.input not in shapes:
            raise _unknown(axis.input, list(shapes))
        shape = shapes[axis.input]
        if shape is None or not -len(shape) <= axis.axis < len(shape):
            count = "an unknown number of" if shape is None else str(len(shape))
            raise UsageError(f"input `{axis.input}` has no axis {axis.axis}: it has {count} axes")
        at = axis.axis % len(shape)
        shapes[axis.input] = (*shape[:at], axis.name, *shape[at + 1 :])
    if any(shapes[spec.name] != spec.shape for spec in before.inputs):
        _set(model, shapes)


def _fix(fixed: dict[str, int], axis: str, size: int) -> None:
    if fixed.setdefault(axis, size) != size:
        raise UsageError(f"axis `{axis}` cannot be both {fixed[axis]} and {size}")


def _set(model: onnx.ModelProto, shapes: dict[str, tuple[Dimension, ...] | None]) -> None:
    for value in model.graph.input:
        wanted = shapes.get(value.name)
        if wanted is None:
            continue
        shape = value.type.tensor_type.shape
        shape.SetInParent()  # without it, a scalar would be a tensor of unknown rank
        del shape.dim[:]
        for size in wanted:
            dim = shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _others(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Return name and kind of the inputs and outputs that are no dense tensors."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for value in [*model.graph.input, *model.graph.output]:
        kind = value.type.WhichOneof("value")
        if value.name not in constants and kind not in ("tensor_type", None):
            found.append((value.name, kind.removesuffix("_type").replace("_", " ")))
    return found


def _unknown(name: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1)
    guess = f' (did you mean "{near[0]}"?)' if near else ""
    return UsageError(
        f'the model has no input "{name}"{guess}', hint=f"its inputs are {', '.join(known)}"
    )
