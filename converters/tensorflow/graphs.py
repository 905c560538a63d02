"""A TensorFlow graph, open in a session: from a SavedModel of any age, or from a frozen GraphDef.

Both go through the TensorFlow-1 loader. It needs no Python objects of the model, so it also reads
SavedModels whose Keras objects (optimizer slots, custom layers) today's TensorFlow cannot rebuild.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.progress import phase
from deploykit.protocol import Signature, Source, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output: `tensor` is the graph's name (`dense/BiasAdd:0`), `spec` the user's."""

    tensor: str
    spec: TensorSpec


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A TensorFlow graph with its variables in `session` (a tf.compat.v1.Session)."""

    session: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def signature(self) -> Signature:
        """Return inputs and outputs with the source's names."""
        return Signature(
            inputs=tuple(item.spec for item in self.inputs),
            outputs=tuple(item.spec for item in self.outputs),
        )


def open_graph(source: Source, threads: int | None = None) -> Graph:
    """Load the SavedModel or GraphDef of `source`.

    Raises SourceError where it cannot be read, UnsupportedError where this TensorFlow lacks one of
    its operators, UsageError where settings or `--input` name what is not in it.
    """
    phase("importing tensorflow")
    import tensorflow as tf

    phase("loading the model")
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    config = tf.compat.v1.ConfigProto()
    if threads is not None:
        config.intra_op_parallelism_threads = threads
        config.inter_op_parallelism_threads = 1
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    try:
        with session.graph.as_default():
            if source.format == "tensorflow/saved_model":
                graph = _saved_model(source, session)
            else:
                graph = _graph_def(source, session)
    except (tf.errors.OpError, ValueError, OSError) as error:
        session.close()
        raise _unreadable(source, error) from error
    except BaseException:
        session.close()
        raise
    return graph


def _unreadable(source: Source, error: Exception) -> SourceError | UnsupportedError:
    text = str(error)
    reason = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    missing = text.partition("Op type not registered '")[2].partition("'")[0]
    if missing:
        return UnsupportedError(
            f"`{source.location}` uses the operator {missing}, which this TensorFlow does not have",
            operators=(missing,),
        )
    return SourceError(f"TensorFlow cannot read `{source.location}`: {reason}")


# ---- SavedModel


def _saved_model(source: Source, session: Any) -> Graph:
    import tensorflow as tf
    from tensorflow.python.saved_model import loader_impl

    check_settings(source, ("signature",))
    tags = [
        set(meta.meta_info_def.tags)
        for meta in loader_impl.parse_saved_model(source.location).meta_graphs
    ]
    chosen = {"serve"} if {"serve"} in tags else tags[0]
    meta = tf.compat.v1.saved_model.loader.load(session, sorted(chosen), source.location)
    signatures = {
        name: item for name, item in meta.signature_def.items() if name != "__saved_model_init_op"
    }
    wanted = source.options.get("signature", "serving_default")
    if wanted not in signatures and "signature" not in source.options and len(signatures) == 1:
        wanted = next(iter(signatures))
    if wanted not in signatures:
        raise UsageError(
            f"`{Path(source.location).name}` has no signature `{wanted}`",
            hint=f"--set signature=NAME, one of: {', '.join(sorted(signatures)) or 'none at all'}",
        )
    chosen_signature = signatures[wanted]
    specs = {spec.name: spec for spec in source.inputs}
    inputs = [_from_info(name, info) for name, info in sorted(chosen_signature.inputs.items())]
    outputs = [_from_info(name, info) for name, info in sorted(chosen_signature.outputs.items())]
    _check_names(specs, [item.spec.name for item in inputs])
    return Graph(
        session=session,
        inputs=tuple(_overridden(item, specs.get(item.spec.name)) for item in inputs),
        outputs=_apart(outputs, inputs),
    )


def _from_info(name: str, info: Any) -> Tensor:
    import tensorflow as tf

    if info.WhichOneof("encoding") != "name":
        raise UnsupportedError(
            f"`{name}` is a sparse or composite tensor, ONNX has dense ones only"
        )
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(None if d.size < 0 else int(d.size) for d in info.tensor_shape.dim)
    dtype = tf.dtypes.as_dtype(info.dtype).name
    return Tensor(tensor=info.name, spec=TensorSpec(name=name, dtype=dtype, shape=shape))


def _apart(outputs: list[Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Rename an output that has the name of an input: one ONNX graph cannot hold both."""
    taken = {item.spec.name for item in inputs}
    return tuple(
        item
        if item.spec.name not in taken
        else Tensor(
            tensor=item.tensor,
            spec=TensorSpec(
                name=f"{item.spec.name}_output", dtype=item.spec.dtype, shape=item.spec.shape
            ),
        )
        for item in outputs
    )


# ---- GraphDef


def _graph_def(source: Source, session: Any) -> Graph:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    check_settings(source, ("inputs", "outputs"))
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(Path(source.location).read_bytes())
    except DecodeError as error:
        raise SourceError(f"`{source.location}` is no GraphDef: {error}") from error
    if not graph_def.node:
        raise SourceError(f"`{source.location}` holds a graph without nodes")
    tf.import_graph_def(graph_def, name="")
    specs = {plain(spec.name): spec for spec in source.inputs}
    named_inputs = _names(source, "inputs")
    if not named_inputs:
        placeholders = [node.name for node in graph_def.node if node.op == "Placeholder"]
        inner = [name for name in specs if name not in placeholders]
        # naming an inner tensor with --input cuts the graph there
        named_inputs = (
            [name for name in placeholders if name in specs] + inner if inner else placeholders
        )
    if not named_inputs:
        raise SourceError(
            f"`{source.location}` has no placeholder", hint="name the inputs: --set inputs=a:0,b:0"
        )
    named_outputs = _names(source, "outputs") or _unconsumed(graph_def)
    inputs = [_from_graph(name, session.graph, source) for name in named_inputs]
    _check_names(specs, [item.spec.name for item in inputs])
    return Graph(
        session=session,
        inputs=tuple(_overridden(item, specs.get(item.spec.name)) for item in inputs),
        outputs=tuple(_from_graph(name, session.graph, source) for name in named_outputs),
    )


def plain(name: str) -> str:
    """Return the tensor's name without the `:0` of a first output."""
    return name.removesuffix(":0")


def _names(source: Source, setting: str) -> list[str]:
    return [name.strip() for name in source.options.get(setting, "").split(",") if name.strip()]


def _unconsumed(graph_def: Any) -> list[str]:
    """Return the nodes whose output nothing reads, in the order of the file."""
    read = {name.split(":")[0] for node in graph_def.node for name in node.input if name[0] != "^"}
    silent = {
        "Placeholder",
        "PlaceholderWithDefault",
        "Const",
        "NoOp",
        "Assert",
        "SaveV2",
        "Assign",
    }
    names = [
        node.name for node in graph_def.node if node.name not in read and node.op not in silent
    ]
    if not names:
        raise SourceError(
            "every node of the graph is read by another, so none is an output",
            hint="name the outputs: --set outputs=a:0,b:0",
        )
    return names


def _from_graph(name: str, graph: Any, source: Source) -> Tensor:
    tensor_name = name if ":" in name else f"{name}:0"
    try:
        tensor = graph.get_tensor_by_name(tensor_name)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"`{Path(source.location).name}` has no tensor `{tensor_name}`",
            hint="tensors are named NODE:NUMBER, as in --set outputs=dense/BiasAdd:0",
        ) from error
    shape = None
    if tensor.shape.rank is not None:
        shape = tuple(None if size is None else int(size) for size in tensor.shape.as_list())
    return Tensor(
        tensor=tensor_name,
        spec=TensorSpec(name=plain(tensor_name), dtype=tensor.dtype.name, shape=shape),
    )


# ---- both


def check_settings(source: Source, known: Iterable[str]) -> None:
    """Raise UsageError for a setting that this format does not have."""
    for name in source.options:
        if name not in known:
            raise UsageError(
                f"{source.format} has no setting `{name}`", hint=f"settings: {', '.join(known)}"
            )


def _check_names(specs: dict[str, TensorSpec], known: list[str]) -> None:
    for name in specs:
        if name not in known:
            raise UsageError(f"the model has no input `{name}`", hint=f"inputs: {', '.join(known)}")


def _overridden(item: Tensor, spec: TensorSpec | None) -> Tensor:
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
