"""From a source of any of the formats to a `Program`."""

from __future__ import annotations

import dataclasses
import random

from deploykit._plugins.converters.pytorch.axes import with_dynamic
from deploykit._plugins.converters.pytorch.files import load_exported_program
from deploykit._plugins.converters.pytorch.modules import load_module
from deploykit._plugins.converters.pytorch.program import Program
from deploykit._plugins.converters.pytorch.remembering import (
    module_with_state,
    script_with_state,
    writes_in_place,
)
from deploykit._plugins.converters.pytorch.script import load_torchscript
from deploykit._plugins.converters.pytorch.state_dicts import load_state_dict

from deploykit.errors import UnsupportedError
from deploykit.plugin_settings import check_names
from deploykit.progress import phase
from deploykit.protocol import DynamicAxis, Source


def load(source: Source, dynamic: tuple[DynamicAxis, ...] = ()) -> Program:
    """Load the model of `source`, with the axes of `dynamic` marked besides those it names itself."""
    phase("importing torch")
    import torch

    torch.manual_seed(
        0
    )  # a module that starts from random weights must get the same in every worker
    random.seed(0)
    phase("loading the model")
    settings = _settings(source)
    match = {
        "pytorch/module": load_module,
        "pytorch/exported_program": load_exported_program,
        "pytorch/torchscript": load_torchscript,
        "pytorch/lite": load_torchscript,
        "pytorch/state_dict": load_state_dict,
    }.get(source.format)
    if match is None:
        raise UnsupportedError(f"the converter pytorch does not read the format `{source.format}`")
    program = match(source)
    names = tuple(filter(None, settings.get("outputs", "").split(",")))
    program = dataclasses.replace(program, output_names=names)
    known = [item.name for item in program.inputs]
    # what the source keeps between calls becomes inputs too, whose axes may be named as well
    program = with_dynamic(program, tuple(axis for axis in dynamic if axis.input in known))
    phase("running the model once")
    program = _with_state(program)
    later = tuple(axis for axis in dynamic if axis.input not in known)
    return with_dynamic(program, later) if later else program


def _with_state(program: Program) -> Program:
    if program.kind == "script":
        return script_with_state(program)
    if program.kind == "module":
        return module_with_state(program)
    if program.model.graph_signature.buffers_to_mutate or writes_in_place(program.model):
        module = program.function
        return module_with_state(dataclasses.replace(program, kind="module", model=module))
    return program


SETTINGS = ("module", "weights", "key", "outputs", "constants")


def _settings(source: Source) -> dict[str, str]:
    check_names(source.options, SETTINGS, plugin="the PyTorch converter")
    return source.options
