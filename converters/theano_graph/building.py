"""The user's own file builds the graph: from `module.py:callable` to variables with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploykit import user_code
from deploykit.errors import SourceError, UnsupportedError

WHAT_TO_RETURN = (
    "return (inputs, outputs) or (inputs, outputs, parameters) of symbolic variables, a compiled"
    " theano.function, or the output layer of a Lasagne network"
)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Inputs and outputs by name; `parameters` in the order in which files hold their values.

    `shapes` are sizes of inputs that the source declares (None: any).
    """

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    parameters: tuple[Any, ...] | None = None
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)


def build(location: str) -> Graph:
    """Return the graph that `module.py:callable` builds. Runs that code.

    Raises SourceError where there is no such callable or it returns something else.
    """
    made = user_code.made_by_user(location, hint=WHAT_TO_RETURN)
    if _is_compiled(made):
        return _of_function(made)
    layers = _layers(made)
    if layers:
        return _of_layers(layers)
    if isinstance(made, (tuple, list)) and 2 <= len(made) <= 3:
        inputs, outputs, *rest = made
        parameters = tuple(_listed(rest[0])) if rest else None
        return Graph(
            inputs=_named(inputs, "input", location),
            outputs=_outputs(outputs, location),
            parameters=parameters,
        )
    raise SourceError(
        f"`{location}` returned a {type(made).__name__}, not inputs and outputs of a graph",
        hint=WHAT_TO_RETURN,
    )


def _is_compiled(made: Any) -> bool:
    return hasattr(made, "maker") and hasattr(made.maker, "inputs")


def _of_function(made: Any) -> Graph:
    """Return the graph of a compiled function as it was before it was compiled."""
    maker = made.maker
    if any(one.update is not None for one in maker.inputs):
        raise UnsupportedError(
            "the function updates shared variables: it is a step of training, or has a memory",
            hint="return (inputs, outputs) of the network instead",
        )
    variables = [one.variable for one in maker.inputs if not hasattr(one.variable, "get_value")]
    held = [one for one in maker.inputs if one.implicit and one.value is not None]
    variables = [one for one in variables if one not in [item.variable for item in held]]
    outputs = [one.variable for one in maker.outputs]
    return Graph(
        inputs=_named(variables, "input", "the function"),
        outputs=_named(outputs, "output", "the function"),
    )


def _layers(made: Any) -> list[Any]:
    """Return Lasagne's layers where `made` is one or several."""
    items = made if isinstance(made, (tuple, list)) else [made]
    found = [one for one in items if hasattr(one, "get_output_for") or hasattr(one, "input_var")]
    return list(found) if found and len(found) == len(items) else []


def _of_layers(layers: Sequence[Any]) -> Graph:
    import lasagne

    every = lasagne.layers.get_all_layers(list(layers))
    first = [one for one in every if hasattr(one, "input_var")]
    outputs = lasagne.layers.get_output(list(layers), deterministic=True)
    inputs: dict[str, Any] = {}
    shapes: dict[str, tuple[int | None, ...]] = {}
    for number, layer in enumerate(first):
        name = str(layer.name or _own_name(layer.input_var) or f"input_{number}")
        name = name if name not in inputs else f"{name}_{number}"
        inputs[name] = layer.input_var
        shapes[name] = tuple(layer.shape)
    named: dict[str, Any] = {}
    for number, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
        name = str(layer.name or f"output_{number}")
        named[name if name not in named else f"{name}_{number}"] = output
    parameters = tuple(lasagne.layers.get_all_params(list(layers)))
    return Graph(inputs=inputs, outputs=named, parameters=parameters, shapes=shapes)


def _own_name(variable: Any) -> str:
    name = str(variable.name or "")
    # pytensor numbers what nobody named
    return "" if name.startswith("auto_") else name


def _listed(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return list(given.values())
    return list(given) if isinstance(given, (tuple, list)) else [given]


def _outputs(given: Any, location: str) -> dict[str, Any]:
    return _named(given, "output", location)


def _named(given: Any, kind: str, location: str) -> dict[str, Any]:
    """Return variables by name: their own, the key in a dict, or a number."""
    from pytensor.graph.basic import Variable

    pairs: list[tuple[str, Any]] = (
        [(str(key), one) for key, one in given.items()]
        if isinstance(given, Mapping)
        else [("", one) for one in _listed(given)]
    )
    found: dict[str, Any] = {}
    for number, (key, one) in enumerate(pairs):
        if not isinstance(one, Variable) or not hasattr(one.type, "dtype"):
            raise SourceError(
                f"`{location}` returned a {type(one).__name__} among its {kind}s,"
                " not a symbolic tensor",
                hint=WHAT_TO_RETURN,
            )
        if kind == "input" and (one.owner is not None or hasattr(one, "get_value")):
            raise SourceError(
                f"`{location}` returned `{one}` as an input, which is computed or holds a value",
                hint="inputs are variables such as T.matrix('x')",
            )
        name = key or _own_name(one) or (f"{kind}_{number}" if len(pairs) > 1 else kind)
        found[_unique(name, found)] = one
    if not found:
        raise SourceError(f"`{location}` returned no {kind}s", hint=WHAT_TO_RETURN)
    return found


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    number, wanted = 1, name
    while wanted in taken:
        wanted, number = f"{name}_{number}", number + 1
    return wanted
