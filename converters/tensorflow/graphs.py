"""A TensorFlow graph, open in a session: from a SavedModel of any age, a frozen GraphDef, a checkpoint.

All go through the TensorFlow-1 loader. It needs no Python objects of the model, so it also reads
SavedModels whose Keras objects (optimizer slots, custom layers) today's TensorFlow cannot rebuild.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import plugin_settings
from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.progress import phase
from deploykit.protocol import Signature, Source, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.tensorflow.states import State

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output: `tensor` is the graph's name (`dense/BiasAdd:0`), `spec` the user's."""

    tensor: str
    spec: TensorSpec


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A TensorFlow graph with its variables in `session` (a tf.compat.v1.Session).

    `constants` are tensors with a value that holds in every run, `draws` random tensors that no
    longer matter then. `state` are variables that become inputs and outputs.
    """

    session: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    constants: dict[str, Array] = field(default_factory=dict)
    draws: tuple[str, ...] = ()
    state: State | None = None
    repairs: tuple[str, ...] = ()

    def signature(self) -> Signature:
        """Return inputs and outputs with the source's names, those of state last."""
        state = self.state.variables if self.state else ()
        return Signature(
            inputs=(*(item.spec for item in self.inputs), *(item.input for item in state)),
            outputs=(*(item.spec for item in self.outputs), *(item.output for item in state)),
        )


def open_graph(source: Source, threads: int | None = None, *, compiled: bool = False) -> Graph:
    """Load the model of `source`; `compiled` lets XLA compile it, at the first call.

    Raises SourceError where it cannot be read, UnsupportedError where this TensorFlow lacks one of
    its operators or ONNX has no form for what it does (random numbers, decoding text), UsageError
    where settings or `--input` name what is not in it.
    """
    phase("importing tensorflow")
    if compiled:  # read when TensorFlow is imported; without it XLA leaves processors out
        os.environ["TF_XLA_FLAGS"] = "--tf_xla_cpu_global_jit"
    import tensorflow as tf
    from deploykit._plugins.converters.tensorflow import graph_files, saved_models

    phase("loading the model")
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    config = tf.compat.v1.ConfigProto()
    if threads is not None:
        config.intra_op_parallelism_threads = threads
        config.inter_op_parallelism_threads = 1
    if compiled:
        optimizer = config.graph_options.optimizer_options
        optimizer.global_jit_level = tf.compat.v1.OptimizerOptions.ON_1
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    try:
        with session.graph.as_default():
            if source.format == "tensorflow/saved_model":
                graph = saved_models.load(source, session)
            elif source.format == "tensorflow/checkpoint":
                graph = graph_files.load_checkpoint(source, session)
            else:
                graph = graph_files.load_graph_def(source, session)
            return _prepared(graph, source)
    except (tf.errors.OpError, ValueError, OSError, TypeError) as error:
        session.close()
        raise _unreadable(source, error) from error
    except BaseException:
        session.close()
        raise


def _unreadable(source: Source, error: Exception) -> SourceError | UnsupportedError:
    text = str(error)
    reason = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    missing = text.partition("Op type not registered '")[2].partition("'")[0]
    if missing:
        return UnsupportedError(
            f"`{source.location}` uses the operator {missing}, which this TensorFlow does not have",
            hint="it came with a library of the model's authors, or with tf.contrib: name outputs "
            "before it, or inputs behind it, if the rest is what you need",
            operators=(missing,),
        )
    return SourceError(f"TensorFlow cannot read `{source.location}`: {reason}")


def _prepared(graph: Graph, source: Source) -> Graph:
    """Fix constants, switch dropout off, and make state explicit."""
    from deploykit._plugins.converters.tensorflow import cutting, dropout, flattening, states

    constants = _constants(graph, source)
    inputs = tuple(item for item in graph.inputs if item.tensor not in constants)
    whole = graph.session.graph.as_graph_def(add_shapes=False)
    tensors = [item.tensor for item in graph.outputs]
    stops = [item.tensor for item in inputs]
    nodes = [name.split(":")[0] for name in tensors]
    ends = {name.split(":")[0] for name in (*stops, *constants)}
    needed = flattening.needed_nodes(whole, nodes, ends)
    cutting.refuse_tables(flattening.nodes_and_bodies(whole, needed))
    quiet = dropout.quieten(
        whole, needed, {name: float(value.reshape(-1)[0]) for name, value in constants.items()}
    )
    for name, value in quiet.fixed.items():
        constants[name] = _value_for(graph.session.graph.get_tensor_by_name(name), value)
    inputs = tuple(_scalar_if(item, constants) for item in inputs)
    state = None
    repairs = [*graph.repairs, *quiet.repairs]
    if states.writes(whole, needed):
        taken = [item.spec.name for item in (*inputs, *graph.outputs)]
        state = states.explicit(graph.session, tensors, stops, taken)
        repairs += [_said(variable) for variable in state.variables]
    return dataclasses.replace(
        graph,
        inputs=inputs,
        constants=constants,
        draws=quiet.draws,
        state=state,
        repairs=tuple(repairs),
    )


def _scalar_if(item: Tensor, constants: dict[str, Array]) -> Tensor:
    """Give an input that has no effect any more a rank, where it has none."""
    if item.tensor not in constants or item.spec.shape is not None:
        return item
    return dataclasses.replace(item, spec=dataclasses.replace(item.spec, shape=()))


def _said(variable: Any) -> str:
    initial = variable.initial
    start = "zeros" if not initial.any() else f"the values in the metadata `{variable.input.name}`"
    return (
        f"state `{variable.node}` is the input `{variable.input.name}` and the output "
        f"`{variable.output.name}`: begin with {start}, then give back what came out"
    )


def _constants(graph: Graph, source: Source) -> dict[str, Array]:
    """Return what `--set constants=a=1,b=false` fixes, by tensor."""
    found: dict[str, Array] = {}
    by_name = {item.spec.name: item.tensor for item in graph.inputs}
    for text in names(source, "constants"):
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError(
                f"`{text}` in the setting `constants` gives no value",
                hint="as in --set constants=is_training=false,keep_prob=1",
            )
        tensor = find_tensor(by_name.get(name.strip(), name.strip()), graph.session.graph, source)
        found[tensor.name] = _value_for(tensor, value.strip())
    return found


def _value_for(tensor: Any, value: str | float) -> Array:
    import numpy as np

    words = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
    try:
        number = words[value.lower()] if str(value).lower() in words else float(value)  # type: ignore[union-attr]
    except ValueError as error:
        raise UsageError(
            f"`{value}` is no value for `{tensor.name}`", hint="a number, or true or false"
        ) from error
    shape = tensor.shape
    if shape.rank and not shape.is_fully_defined():
        raise UsageError(f"`{tensor.name}` has no certain size, so one value cannot fill it")
    return np.full(shape.as_list() if shape.rank else (), number, tensor.dtype.as_numpy_dtype)


# ---- for all formats


def names(source: Source, setting: str) -> list[str]:
    """Return what a setting lists with commas."""
    return [name.strip() for name in source.options.get(setting, "").split(",") if name.strip()]


def plain(name: str) -> str:
    """Return the tensor's name without the `:0` of a first output."""
    return name.removesuffix(":0")


def find_tensor(name: str, graph: Any, source: Source) -> Any:
    """Return the tensor `name` (`:0` may be left out). Raises UsageError where there is none."""
    full = name if ":" in name else f"{name}:0"
    try:
        return graph.get_tensor_by_name(full)
    except (KeyError, ValueError) as error:
        raise no_tensor(full, source) from error


def no_tensor(name: str, source: Source) -> UsageError:
    """Return the error for a tensor that is not in the graph."""
    return UsageError(
        f"`{Path(source.location).name}` has no tensor `{name}`",
        hint="tensors are named NODE:NUMBER, as in --set outputs=dense/BiasAdd:0",
    )


def from_graph(name: str, graph: Any, source: Source) -> Tensor:
    """Return the tensor `name` as an input or output, named as the graph has it."""
    tensor = find_tensor(name, graph, source)
    shape = None
    if tensor.shape.rank is not None:
        shape = tuple(None if size is None else int(size) for size in tensor.shape.as_list())
    return Tensor(
        tensor=tensor.name,
        spec=TensorSpec(name=plain(tensor.name), dtype=tensor.dtype.base_dtype.name, shape=shape),
    )


def check_settings(source: Source, known: Iterable[str]) -> None:
    """Raise UsageError for a setting that this format does not have."""
    plugin_settings.check_names(source.options, tuple(known), plugin=source.format)


def check_names(specs: dict[str, TensorSpec], known: list[str]) -> None:
    """Raise UsageError for an input of the user's that the model does not have."""
    for name in specs:
        if name not in known:
            raise UsageError(f"the model has no input `{name}`", hint=f"inputs: {', '.join(known)}")


def overridden(item: Tensor, spec: TensorSpec | None) -> Tensor:
    """Return `item` with the shape of `spec`, the user's word about it."""
    if spec is None:
        return item
    if spec.dtype != item.spec.dtype:
        raise UsageError(
            f"input `{item.spec.name}` is {item.spec.dtype} in the model, asked for {spec.dtype}"
        )
    shape = item.spec.shape if spec.shape is None else spec.shape
    return Tensor(
        tensor=item.tensor, spec=TensorSpec(name=item.spec.name, dtype=spec.dtype, shape=shape)
    )
