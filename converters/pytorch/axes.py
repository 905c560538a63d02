"""Which tensors the arguments hold, with which names, sizes and dynamic axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from deploykit._plugins.converters.pytorch.program import Input, Program, dtype_name, leaf_names

from deploykit.errors import UnsupportedError, UsageError
from deploykit.protocol import DynamicAxis, TensorSpec

FIRST_AXIS, OTHER_AXIS = 2, 64
"""Example sizes of dynamic axes that nothing else fixes: a batch, and an image side or a sequence."""


def example_tensor(spec: TensorSpec) -> Any:
    """Return a tensor that fits `spec`: uniform floats, and zeros, which index any table."""
    import torch

    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"input `{spec.name}`: PyTorch has no dtype `{spec.dtype}`")
    if spec.shape is None:
        raise UsageError(
            f"input `{spec.name}` needs a shape", hint=f"--input {spec.name}:{spec.dtype}[1,?]"
        )
    sizes = [
        size if isinstance(size, int) else (OTHER_AXIS if axis else FIRST_AXIS)
        for axis, size in enumerate(spec.shape)
    ]
    if dtype.is_floating_point:
        return torch.rand(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.zeros(sizes, dtype=dtype)


def program_of(
    kind: str, model: Any, function: Any, args: Any, kwargs: Any, names: Sequence[str]
) -> Program:
    """Return the program that calls `function` with `(args, kwargs)`; its inputs are the tensors there."""
    import torch
    from torch.utils import _pytree

    leaves, structure = _pytree.tree_flatten((tuple(args), dict(kwargs)))
    inputs = tuple(
        Input(leaf=number, name=name)
        for number, name in enumerate(leaf_names(names, args, kwargs))
        if isinstance(leaves[number], torch.Tensor)
    )
    return Program(
        kind=kind,
        model=model,
        function=function,
        leaves=tuple(leaves),
        structure=structure,
        argument_names=tuple(names),
        inputs=inputs,
    )


def flat_marks(value: Any, marks: Any) -> list[Any]:
    """Return what `marks` (torch.export's `dynamic_shapes`) says of each leaf of `value`, or None.

    Raises UsageError where the two have different structures.
    """
    from torch.utils import _pytree

    if marks is None:
        return [None] * len(_pytree.tree_leaves(value))
    if isinstance(value, dict) and isinstance(marks, (tuple, list)) and len(marks) == len(value):
        marks = dict(zip(value, marks, strict=True))
    if isinstance(value, dict) and isinstance(marks, dict) and set(marks) <= set(value):
        return [leaf for key in value for leaf in flat_marks(value[key], marks.get(key))]
    if isinstance(value, (tuple, list)):
        if not isinstance(marks, (tuple, list)) or len(marks) != len(value):
            raise UsageError(f"dynamic_shapes says {marks!r} of {len(value)} arguments")
        return [
            leaf for item, mark in zip(value, marks, strict=True) for leaf in flat_marks(item, mark)
        ]
    if isinstance(value, dict):
        raise UsageError(f"dynamic_shapes does not fit the arguments {', '.join(map(str, value))}")
    return [marks]


def with_user_marks(program: Program, flat: Sequence[Any]) -> Program:
    """Take over the user's own `dynamic_shapes`, flattened to one entry per leaf."""
    inputs = []
    for item in program.inputs:
        entry = flat[item.leaf] or {}
        pairs = entry.items() if isinstance(entry, dict) else enumerate(entry)
        marks = {
            axis: mark for axis, mark in pairs if mark is not None and not isinstance(mark, int)
        }
        axes = {
            axis: mark
            if isinstance(mark, str)
            else getattr(mark, "__name__", f"{item.name}_axis{axis}")
            for axis, mark in marks.items()
        }
        kept = {axis: mark for axis, mark in marks.items() if not isinstance(mark, str)}
        inputs.append(dataclasses.replace(item, axes=axes, marks=kept))
    return dataclasses.replace(program, inputs=tuple(inputs))


def with_specs(program: Program, specs: tuple[TensorSpec, ...]) -> Program:
    """Let the user's specs override dtype and shape of the examples, and name dynamic axes."""
    given = {spec.name: spec for spec in specs}
    known = [item.name for item in program.inputs]
    for name in given:
        if name not in known:
            raise UsageError(
                f"the model has no input `{name}`", hint=f"inputs: {', '.join(known) or 'none'}"
            )
    leaves = list(program.leaves)
    inputs = []
    for item in program.inputs:
        spec = given.get(item.name)
        if spec is None or spec.shape is None:
            inputs.append(item)
            continue
        old = leaves[item.leaf]
        if program.kind == "exported" and not _fits(program, item, spec):
            raise UnsupportedError(
                f"the exported program fixes `{item.name}` to {dtype_name(old)}"
                f"{list(program.shape(item))}, asked for {spec}",
                hint="export it again with dynamic_shapes",
            )
        axes = {
            axis: size or f"{item.name}_axis{axis}"
            for axis, size in enumerate(spec.shape)
            if not isinstance(size, int)
        }
        sizes = tuple(size if isinstance(size, int) else None for size in spec.shape)
        if old.ndim == len(sizes):  # a dynamic axis keeps the size of the example
            sizes = tuple(
                int(old.shape[axis]) if size is None else size for axis, size in enumerate(sizes)
            )
        if tuple(old.shape) != sizes or dtype_name(old) != spec.dtype:
            leaves[item.leaf] = example_tensor(dataclasses.replace(spec, shape=sizes))
        marks = {axis: mark for axis, mark in item.marks.items() if axis in axes}
        inputs.append(dataclasses.replace(item, axes=axes, marks=marks))
    return dataclasses.replace(program, leaves=tuple(leaves), inputs=tuple(inputs))


def _fits(program: Program, item: Input, spec: TensorSpec) -> bool:
    shape = program.shape(item)
    if spec.shape is None or len(spec.shape) != len(shape):
        return False
    sizes = zip(shape, spec.shape, strict=True)
    return spec.dtype == dtype_name(program.leaves[item.leaf]) and all(
        isinstance(ours, str) or ours == theirs for ours, theirs in sizes
    )


def with_dynamic(program: Program, dynamic: tuple[DynamicAxis, ...]) -> Program:
    """Mark the axes of `dynamic`, and give every dynamic axis an example size above one."""
    import torch

    leaves = list(program.leaves)
    inputs = {item.name: item for item in program.inputs}
    for wish in dynamic:
        item = inputs.get(wish.input)
        if item is None:
            raise UsageError(
                f"the model has no input `{wish.input}`", hint=f"inputs: {', '.join(inputs)}"
            )
        rank = leaves[item.leaf].ndim
        if not 0 <= wish.axis < rank:
            raise UsageError(f"input `{wish.input}` has {rank} axes, none of them is {wish.axis}")
        if program.kind == "exported" and wish.axis not in item.axes:
            raise UnsupportedError(
                f"the exported program fixes axis {wish.axis} of `{wish.input}` "
                f"to {leaves[item.leaf].shape[wish.axis]}",
                hint="export it again with dynamic_shapes",
            )
        inputs[wish.input] = dataclasses.replace(item, axes={**item.axes, wish.axis: wish.name})
    if program.kind != "exported":
        for item in inputs.values():
            for axis in item.axes:
                # torch.export takes a size of one for a constant that broadcasts
                if leaves[item.leaf].shape[axis] == 1:
                    leaves[item.leaf] = torch.cat([leaves[item.leaf]] * 2, dim=axis)
    return dataclasses.replace(program, leaves=tuple(leaves), inputs=tuple(inputs.values()))
