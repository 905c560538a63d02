"""From `module.py:callable` to a traced function of flat arrays with names."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploykit import user_code
from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.plugin_settings import check_names
from deploykit.progress import phase
from deploykit.protocol import Dimension, DynamicAxis, Signature, Source, TensorSpec

FORM = "return (function, example inputs), or (flax module, variables, example inputs)"


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of flat arrays: `flat(*arrays)` gives the list of its outputs.

    `specs` are jax.ShapeDtypeStructs, dynamic axes symbolic; `jaxpr` is the closed program.
    """

    name: str
    flat: Callable[..., list[Any]]
    names: tuple[str, ...]
    specs: tuple[Any, ...]
    output_names: tuple[str, ...]
    jaxpr: Any

    def signature(self) -> Signature:
        """Return the arrays by name."""
        pairs = zip(self.names, self.specs, strict=True)
        outputs = zip(self.output_names, self.jaxpr.out_avals, strict=True)
        return Signature(
            inputs=tuple(_spec(name, spec) for name, spec in pairs),
            outputs=tuple(_spec(name, aval) for name, aval in outputs),
        )


def _spec(name: str, value: Any) -> TensorSpec:
    import jax

    shape: tuple[Dimension, ...] = tuple(
        str(size) if jax.export.is_symbolic_dim(size) else int(size) for size in value.shape
    )
    return TensorSpec(name=name, dtype=value.dtype.name, shape=shape)


def load(source: Source, dynamic: tuple[DynamicAxis, ...] = ()) -> Function:
    """Run the user's callable and trace what it returns. Raises as the plugin's `inspect` does."""
    check_names(source.options, ("outputs",), plugin="the JAX converter")
    phase("importing jax")
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from jax.tree_util import tree_flatten_with_path, tree_unflatten

    phase("building the function")
    function, examples = _function(
        user_code.made_by_user(source.location, hint=FORM), source.location
    )
    args, kwargs = _arguments(examples)
    leaves, structure = tree_flatten_with_path((args, kwargs))
    names = _names(function, [path for path, _ in leaves])
    specs = _specs(names, [leaf for _, leaf in leaves], source, dynamic)
    seen: list[tuple[str, ...]] = []

    def flat(*arrays: Any) -> list[Any]:
        args, kwargs = tree_unflatten(structure, list(arrays))
        found, _ = tree_flatten_with_path(function(*args, **kwargs))
        seen.append(tuple(_output_name(path) for path, _ in found))
        return [leaf for _, leaf in found]

    phase("tracing the function")
    try:
        closed = jax.make_jaxpr(flat)(*specs)
    except Exception as error:  # whatever the user's code raises, and JAX's own by their names
        kind = type(error).__name__
        advice = {
            "InconclusiveDimensionOperation": "leave out the dynamic axis that it names",
            "TracerBoolConversionError": "use jax.lax.cond or jnp.where for what depends on values",
            "ConcretizationTypeError": "use jax.lax.cond or jnp.where for what depends on values",
        }.get(kind, "")
        text = " ".join(str(error).split())[:400]
        raise UnsupportedError(
            f"JAX {jax.__version__} cannot trace the function: {kind}: {text}", hint=advice
        ) from error
    wanted = tuple(filter(None, source.options.get("outputs", "").split(",")))
    made = seen[-1]
    if wanted and len(wanted) != len(made):
        raise UsageError(
            f"the setting `outputs` names {len(wanted)} outputs, the function has {len(made)}: "
            f"{', '.join(made)}"
        )
    unique = tuple(f"{name}_output" if name in names else name for name in wanted or made)
    return Function(
        name=source.location.rpartition(":")[2],
        flat=flat,
        names=names,
        specs=tuple(specs),
        output_names=unique,
        jaxpr=closed,
    )


def _function(made: Any, location: str) -> tuple[Callable[..., Any], Any]:
    """Return the function to trace and its example inputs."""
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not callable(made[0]):
        kind = f"a tuple of {len(made)}" if isinstance(made, tuple) else f"a {type(made).__name__}"
        raise SourceError(f"`{location}` returned {kind}", hint=FORM)
    first, examples = made[0], made[-1]
    if len(made) == 2:
        if hasattr(first, "apply") and hasattr(first, "init"):
            raise SourceError(f"`{location}` returned a flax module without variables", hint=FORM)
        return first, examples
    if not hasattr(first, "apply"):
        raise SourceError(f"`{location}`: a {type(first).__name__} has no `apply`", hint=FORM)
    variables = made[1]

    def apply(*args: Any, **kwargs: Any) -> Any:
        return first.apply(variables, *args, **kwargs)

    apply.__signature__ = inspect.signature(type(first).__call__)  # type: ignore[attr-defined]
    return apply, examples


def _arguments(examples: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(examples, dict):
        return (), dict(examples)
    if isinstance(examples, (tuple, list)):
        return tuple(examples), {}
    return (examples,), {}


def _names(function: Any, paths: list[Any]) -> tuple[str, ...]:
    try:
        parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):
        parameters = []
    names = []
    for path in paths:
        if path[0].idx == 1:
            parts = [str(path[1].key)]
        elif path[1].idx < len(parameters):
            parts = [parameters[path[1].idx]]
        else:
            parts = [f"input_{path[1].idx}"]
        names.append("_".join([*parts, *(_key(entry) for entry in path[2:])]))
    return tuple(names)


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _output_name(path: Any) -> str:
    parts = [_key(entry) for entry in path]
    named = parts and not parts[0].isdigit()
    return "_".join(parts if named else ["output", *parts])


def _specs(
    names: tuple[str, ...], leaves: list[Any], source: Source, dynamic: tuple[DynamicAxis, ...]
) -> list[Any]:
    """Return one jax.ShapeDtypeStruct each, with the dynamic axes of the user's specs and wishes."""
    import jax
    import numpy as np

    given = {spec.name: spec for spec in source.inputs}
    wishes = [(axis.input, axis) for axis in dynamic]
    for name in (*given, *(name for name, _ in wishes)):
        if name not in names:
            raise UsageError(f"no input `{name}`", hint=f"inputs: {', '.join(names)}")
    scope = jax.export.SymbolicScope()
    found = []
    for name, leaf in zip(names, leaves, strict=True):
        if not hasattr(leaf, "shape"):
            leaf = np.asarray(leaf)
        shape: list[Any] = [
            str(size) if jax.export.is_symbolic_dim(size) else size for size in leaf.shape
        ]
        dtype = leaf.dtype
        spec = given.get(name)
        if spec is not None and spec.shape is not None:
            dtype = np.dtype(spec.dtype) if spec.dtype != "bfloat16" else jax.numpy.bfloat16
            shape = [
                f"{name}_axis{axis}" if size is None else size
                for axis, size in enumerate(spec.shape)
            ]
        for wish in (axis for target, axis in wishes if target == name):
            if not 0 <= wish.axis < len(shape):
                raise UsageError(f"`{name}` has {len(shape)} axes, none of them is {wish.axis}")
            shape[wish.axis] = wish.name
        if any(isinstance(size, str) for size in shape):
            words = ",".join(str(size) for size in shape) + ("," if len(shape) == 1 else "")
            try:
                sizes = jax.export.symbolic_shape(words, scope=scope)
            except Exception as error:
                raise UsageError(
                    f"`{name}`: {error}", hint="name dynamic axes by letters"
                ) from error
        else:
            sizes = tuple(int(size) for size in shape)
        found.append(jax.ShapeDtypeStruct(sizes, jax.dtypes.canonicalize_dtype(dtype)))
    return found
