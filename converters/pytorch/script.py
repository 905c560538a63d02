"""TorchScript, also as the lite interpreter's file where that carries the TorchScript too."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.pytorch import spectral
from deploykit._plugins.converters.pytorch.axes import example_tensor, program_of, with_specs
from deploykit._plugins.converters.pytorch.interpreter import Interpreter
from deploykit._plugins.converters.pytorch.program import Program, first_line
from deploykit._plugins.converters.pytorch.script_graph import nodes

from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import Source, TensorSpec


def load_torchscript(source: Source) -> Program:
    """Load a script, also from the lite interpreter's file. Raises UnsupportedError or SourceError."""
    import torch

    with Path(source.location).open("rb") as stream:
        is_archive = stream.read(4) == b"PK\x03\x04"
    try:
        if is_archive:
            script = torch.jit.load(source.location, map_location="cpu")
        else:
            script = torch.jit.jit_module_from_flatbuffer(source.location)
    except RuntimeError as error:
        text = str(error)
        if "Unknown builtin op" in text or "Unknown type name" in text:
            raise _unknown_operator(source, text) from error
        if source.format == "pytorch/lite":
            raise UnsupportedError(
                f"`{source.location}` holds only the bytecode of the lite interpreter, not the "
                f"TorchScript it was made from: {first_line(error)}",
                hint="convert the model it was made from",
            ) from error
        raise SourceError(f"cannot read `{source.location}`: {first_line(error)}") from error
    except (ValueError, OSError, EOFError) as error:
        raise SourceError(f"cannot read `{source.location}`: {first_line(error)}") from error
    return script_program(script, source)


def _unknown_operator(source: Source, text: str) -> UnsupportedError:
    import torch

    found = re.search(r"Unknown (?:builtin op|type name)[:\s]+'?([\w:.]+?)'?[.\s]", text)
    name = found[1] if found else ""
    package = name.partition("::")[0]
    lines = [line.strip() for line in text.splitlines() if "~" not in line and line.strip()]
    place = next((line for line in lines if name.rpartition("::")[2] + "(" in line), "")
    at = f" (in `{place[:120]}`)" if place else ""
    return UnsupportedError(
        f"torch {torch.__version__} does not know the operator {name} of `{source.location}`{at}",
        hint=f"it comes with the package {package}: end the model before it, and run it outside"
        if package not in ("aten", "prim", "")
        else "it was removed from PyTorch: convert the module itself",
        operators=(name,) if name else (),
    )


def script_program(script: Any, source: Source, examples: Sequence[Any] = ()) -> Program:
    """Return the program of a ScriptModule, its example arguments from the specs of `source`.

    Where there are none, from `examples`, in the order of its arguments, or what it was traced with. Raises UsageError where that is not enough.
    """
    if not hasattr(script, "forward"):
        raise UnsupportedError(f"`{source.location}` has no forward method")
    script.eval()
    schema = [argument for argument in script.forward.schema.arguments if argument.name != "self"]
    names = [argument.name for argument in schema]
    constants = _constants(source)
    tensors = [
        one.name for one in schema if "Tensor" in str(one.type) and one.name not in constants
    ]
    given, repairs = _by_name(source.inputs, names, tensors)
    values: list[Any] = []
    traced = {} if given else _traced_with(source)
    unknown = [name for name in constants if name not in names]
    if unknown:
        raise UsageError(
            f"the setting `constants` names {', '.join(unknown)}, which is no argument "
            f"(arguments: {', '.join(names) or 'none'})"
        )
    for number, argument in enumerate(schema):
        kind = str(argument.type)
        parts = _parts(argument.name, given)
        if argument.name in constants:
            values.append(constants[argument.name])
        elif argument.name in given and "Tensor" in kind:
            values.append(example_tensor(given[argument.name]))
        elif number < len(examples):
            values.append(examples[number])
        elif argument.name in traced and kind == "Tensor":
            values.append(example_tensor(traced[argument.name]))
        elif parts and "Tensor" in kind:
            items = [example_tensor(spec) for spec in parts]
            values.append(tuple(items) if kind.startswith("Tuple") else items)
        elif argument.has_default_value():
            values.append(argument.default_value)
        elif kind == "Tensor":
            raise UsageError(
                f"TorchScript does not say the shape of `{argument.name}` "
                f"(arguments: {', '.join(names)})",
                hint=f"give it, for example --input {argument.name}:float32[1,3,224,224]",
            )
        elif "Tensor" in kind:
            raise UsageError(
                f"the argument `{argument.name}` is a {kind}",
                hint=f"give its tensors in turn: --input {argument.name}_0:float32[1,8] …",
            )
        else:
            raise UsageError(
                f"the argument `{argument.name}` is no tensor but a {kind}",
                hint=f"fix its value: --set constants='{{\"{argument.name}\": …}}'",
            )
    program = program_of("script", script, script, tuple(values), {}, names)
    program = dataclasses.replace(program, repairs=repairs)
    return with_specs(_runnable(program), tuple(given.values()))


def _constants(source: Source) -> dict[str, Any]:
    try:
        constants = json.loads(source.options.get("constants", "{}"))
    except ValueError as error:
        raise UsageError(
            f"the setting `constants` is no JSON object: {error}", hint='constants={"sr": 16000}'
        ) from error
    if not isinstance(constants, dict):
        raise UsageError(
            "the setting `constants` is no JSON object", hint='constants={"sr": 16000}'
        )
    return constants


def _by_name(
    specs: Sequence[TensorSpec], names: Sequence[str], tensors: Sequence[str]
) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    """Return the specs by the argument's name; one spec fits the one tensor under any name."""
    given = {spec.name: spec for spec in specs}
    if len(tensors) == 1 and len(specs) == 1 and specs[0].name not in names:
        (name,) = tensors
        if not _parts(name, given):
            note = f"the input `{specs[0].name}` is the model's `{name}`: it has only this one"
            return {name: dataclasses.replace(specs[0], name=name)}, (note,)
    known = {spec.name for name in names for spec in _parts(name, given)} | set(names)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(
            f"no argument named {', '.join(unknown)} (arguments: {', '.join(names) or 'none'})"
        )
    return given, ()


def _parts(name: str, given: Mapping[str, TensorSpec]) -> list[TensorSpec]:
    """Return the specs `NAME_0`, `NAME_1`, … of the tensors in a list."""
    found: list[TensorSpec] = []
    while (spec := given.get(f"{name}_{len(found)}")) is not None:
        found.append(spec)
    return found


def _traced_with(source: Source) -> dict[str, TensorSpec]:
    """Return dtype and shape of the tensors that a file was traced with; scripted ones have none."""
    from deploykit.formats import inspect

    if not source.format.startswith(("pytorch/torchscript", "pytorch/lite")):
        return {}
    try:
        signature = inspect(source.location, format=source.format).signature
    except DeploykitError:
        return {}  # torch reads it, and the shapes are only a convenience
    if signature is None:
        return {}
    return {spec.name: spec for spec in signature.inputs if spec.shape is not None}


def _runnable(program: Program) -> Program:
    """Return `program` so that it runs in this version of torch: old calls of stft are mended."""
    import torch

    if not any(node.kind() == "aten::stft" for node in nodes(program.model.inlined_graph)):
        return program
    args, _ = program.arguments(program.leaves)
    try:
        with torch.no_grad():
            program.model(*args)
    except RuntimeError as error:
        if "return_complex" not in str(error):
            return program  # the call on all inputs says what is wrong
        interpreter = Interpreter(program.model, special={"aten::stft": spectral.computed})
        return dataclasses.replace(
            program,
            function=interpreter,
            legacy=False,
            repairs=(*program.repairs, spectral.REPAIR),
        )
    return program
