"""SavedModels of TensorFlow 1 and 2: signatures, or tensors by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploykit._plugins.converters.tensorflow import cutting
from deploykit._plugins.converters.tensorflow.graphs import (
    Graph,
    Tensor,
    check_names,
    check_settings,
    from_graph,
    names,
    overridden,
)

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.protocol import Source, TensorSpec

_INIT = "__saved_model_init_op"


def load(source: Source, session: Any) -> Graph:
    """Load a SavedModel into `session`.

    Raises SourceError where there is none, UsageError where it has not the signature asked for.
    """
    import tensorflow as tf
    from tensorflow.python.saved_model import loader_impl

    check_settings(source, ("signature", "inputs", "outputs", "constants"))
    tags = [
        set(meta.meta_info_def.tags)
        for meta in loader_impl.parse_saved_model(source.location).meta_graphs
    ]
    if not tags:
        raise SourceError(f"`{source.location}` holds no graph")
    chosen = {"serve"} if {"serve"} in tags else tags[0]
    meta = tf.compat.v1.saved_model.loader.load(session, sorted(chosen), source.location)
    inputs, outputs = _ends(meta, session.graph, source)
    cut = cutting.begin_at_numbers(
        session.graph,
        tuple(item.tensor for item in inputs),
        tuple(item.tensor for item in outputs),
    )
    known = {item.tensor: item for item in inputs}
    inputs = [known.get(name) or from_graph(name, session.graph, source) for name in cut.inputs]
    specs = {spec.name: spec for spec in source.inputs}
    check_names(specs, [item.spec.name for item in inputs])
    return Graph(
        session=session,
        inputs=tuple(overridden(item, specs.get(item.spec.name)) for item in inputs),
        outputs=_apart(outputs, inputs),
        repairs=cut.repairs,
    )


def _ends(meta: Any, graph: Any, source: Source) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and outputs: the signature's, or what the settings name of these or of the graph."""
    wanted_inputs, wanted_outputs = names(source, "inputs"), names(source, "outputs")
    if wanted_inputs and wanted_outputs and "signature" not in source.options:
        given = _signatures(meta)
        signature = given.get("serving_default") or next(iter(given.values()), None)
    else:
        signature = _signature(meta, source)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    if signature is not None:
        inputs = {name: _from_info(name, info) for name, info in sorted(signature.inputs.items())}
        outputs = {name: _from_info(name, info) for name, info in sorted(signature.outputs.items())}
    return (
        [inputs.get(n) or from_graph(n, graph, source) for n in wanted_inputs or inputs],
        [outputs.get(n) or from_graph(n, graph, source) for n in wanted_outputs or outputs],
    )


def _signatures(meta: Any) -> dict[str, Any]:
    return {name: item for name, item in meta.signature_def.items() if name != _INIT}


def _signature(meta: Any, source: Source) -> Any:
    signatures = _signatures(meta)
    wanted = source.options.get("signature", "serving_default")
    if wanted not in signatures and "signature" not in source.options:
        # by the method's name: TensorFlow 1 had other keys for what is served
        served = [
            name
            for name, item in signatures.items()
            if item.method_name == "tensorflow/serving/predict"
        ]
        for few in (list(signatures), served):
            wanted = few[0] if len(few) == 1 else wanted
    if wanted not in signatures:
        raise UsageError(
            f"`{Path(source.location).name}` has no signature `{wanted}`",
            hint=f"--set signature=NAME, one of: {', '.join(sorted(signatures))}"
            if signatures
            else "it has none at all: name tensors, --set inputs=a:0 --set outputs=b:0",
        )
    return signatures[wanted]


def _from_info(name: str, info: Any) -> Tensor:
    import tensorflow as tf

    if info.WhichOneof("encoding") != "name":
        raise UnsupportedError(
            f"`{name}` is a sparse or composite tensor, ONNX has dense ones only",
            hint="export it dense (`.to_tensor()`, `tf.sparse.to_dense`), or choose others: "
            "`--set outputs=NAME`, `--set inputs=NAME`",
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
