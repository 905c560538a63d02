"""TorchScript, also as the lite interpreter's file where that carries the TorchScript too."""

from __future__ import annotations

import json
from typing import Any

from deploykit._plugins.converters.pytorch.axes import example_tensor, program_of, with_specs
from deploykit._plugins.converters.pytorch.program import Program, first_line

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.protocol import Source


def load_torchscript(source: Source) -> Program:
    import torch

    try:
        script = torch.jit.load(source.location, map_location="cpu")
    except RuntimeError as error:
        text = str(error)
        if "Unknown builtin op" in text or "Unknown type name" in text:
            operator = text.partition("op: ")[2].split(".\n")[0].split()[:1]
            raise UnsupportedError(
                f"torch {torch.__version__} does not know an operator of `{source.location}`: "
                f"{first_line(error)}",
                operators=tuple(operator),
            ) from error
        if source.format == "pytorch/lite":
            raise UnsupportedError(
                f"`{source.location}` holds only the bytecode of the lite interpreter, not the "
                f"TorchScript it was made from: {first_line(error)}",
                hint="convert the model it was made from",
            ) from error
        raise SourceError(f"cannot read `{source.location}`: {first_line(error)}") from error
    return script_program(script, source)


def script_program(script: Any, source: Source) -> Program:
    if "forward" not in script._method_names() if hasattr(script, "_method_names") else False:
        raise UnsupportedError(f"`{source.location}` has no forward method")
    script.eval()
    schema = [argument for argument in script.forward.schema.arguments if argument.name != "self"]
    try:
        constants = json.loads(source.options.get("constants", "{}"))
    except ValueError as error:
        raise UsageError(
            f"the setting `constants` is no JSON object: {error}", hint='constants={"sr": 16000}'
        ) from error
    given = {spec.name: spec for spec in source.inputs}
    names = [argument.name for argument in schema]
    unknown = [name for name in (*given, *constants) if name not in names]
    if unknown:
        raise UsageError(
            f"no argument named {', '.join(unknown)} (arguments: {', '.join(names) or 'none'})"
        )
    values: list[Any] = []
    for argument in schema:
        kind = str(argument.type)
        if argument.name in constants:
            values.append(constants[argument.name])
        elif argument.name in given and "Tensor" in kind:
            values.append(example_tensor(given[argument.name]))
        elif argument.has_default_value():
            values.append(argument.default_value)
        elif kind == "Tensor":
            raise UsageError(
                f"TorchScript does not say the shape of `{argument.name}` "
                f"(arguments: {', '.join(names)})",
                hint=f"give it, for example --input {argument.name}:float32[1,3,224,224]",
            )
        else:
            raise UsageError(
                f"the argument `{argument.name}` is no tensor but a {kind}",
                hint=f"fix its value: --set constants='{{\"{argument.name}\": …}}'",
            )
    program = program_of("script", script, script, tuple(values), {}, names)
    return with_specs(program, source.inputs)
