"""Files that torch.export saves."""

from __future__ import annotations

import dataclasses
from typing import Any

from deploykit._plugins.converters.pytorch.archive import check_archive, tensors_only
from deploykit._plugins.converters.pytorch.axes import (
    FIRST_AXIS,
    OTHER_AXIS,
    example_tensor,
    program_of,
    with_specs,
)
from deploykit._plugins.converters.pytorch.program import Program, dtype_name, first_line

from deploykit.errors import SourceError
from deploykit.protocol import Source, TensorSpec


def load_exported_program(source: Source) -> Program:
    import torch
    from torch.utils import _pytree

    if not source.trust:
        check_archive(source.location)
    try:
        if source.trust:
            exported = torch.export.load(source.location)
        else:
            with tensors_only():
                exported = torch.export.load(source.location)
    except Exception as error:  # torch's reader raises whatever a damaged file makes it raise
        raise SourceError(
            f"torch {torch.__version__} cannot load `{source.location}`: {first_line(error)}",
            hint="export it again with this version of torch",
        ) from error
    shape_of = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    layout = exported.module_call_graph[0].signature
    user_inputs = list(exported.graph_signature.user_inputs)
    leaves = [
        _example_of(shape_of.get(name)) if isinstance(name, str) and name in shape_of else name
        for name in user_inputs
    ]
    if exported.example_inputs is not None:
        leaves = _pytree.tree_flatten(exported.example_inputs)[0]
    args, kwargs = _pytree.tree_unflatten(leaves, layout.in_spec)
    names = list(layout.forward_arg_names or [])
    program = program_of("exported", exported, exported.module(), args, kwargs, names)
    inputs = []
    for item in program.inputs:
        symbolic = shape_of[user_inputs[item.leaf]].shape
        axes = {axis: str(size) for axis, size in enumerate(symbolic) if not isinstance(size, int)}
        inputs.append(dataclasses.replace(item, axes=axes))
    return with_specs(dataclasses.replace(program, inputs=tuple(inputs)), source.inputs)


def _example_of(value: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    sizes = tuple(
        size if isinstance(size, int) else (OTHER_AXIS if axis else FIRST_AXIS)
        for axis, size in enumerate(value.shape)
    )
    return example_tensor(TensorSpec(name="", dtype=dtype_name(value), shape=sizes))
