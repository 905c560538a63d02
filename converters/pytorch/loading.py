"""From a source of any of the formats to a `Program`."""

from __future__ import annotations

import dataclasses
import random

from deploykit._plugins.converters.pytorch.axes import with_dynamic
from deploykit._plugins.converters.pytorch.files import load_exported_program, load_state_dict
from deploykit._plugins.converters.pytorch.modules import load_module
from deploykit._plugins.converters.pytorch.program import Program
from deploykit._plugins.converters.pytorch.script import load_torchscript

from deploykit.errors import UnsupportedError, UsageError
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
    return with_dynamic(dataclasses.replace(program, output_names=names), dynamic)


def _settings(source: Source) -> dict[str, str]:
    for name in source.options:
        if name not in ("outputs", "constants"):
            raise UsageError(
                f"the converter pytorch has no setting `{name}`",
                hint="settings: outputs, constants",
            )
    return source.options
