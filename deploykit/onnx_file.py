"""The last step of every converter: an ONNX model is finished, checked and written whole or not at all.

This file also runs inside plugin environments: standard library, numpy and onnx (1.17 or newer).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deploykit.errors import OutputError, PluginError
from deploykit.protocol import Dimension, Signature, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

LARGEST_MESSAGE = 2**31 - 2**20
"""Bytes of a protobuf message that every reader still takes; larger weights go beside the file."""

PAGE = 4096

LARGEST_SHAPE = 4096
"""Bytes of a constant whose values may still say the shape of something (the operand of Reshape)."""

_ONNX_DTYPES = {"float": "float32", "double": "float64"}


def signature_of(model: onnx.ModelProto) -> Signature:
    """Return inputs (without initializers) and outputs of `model` in the order of the file."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return Signature(
        inputs=tuple(_spec(value) for value in model.graph.input if value.name not in constants),
        outputs=tuple(_spec(value) for value in model.graph.output),
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    return TensorSpec(
        name=value.name,
        dtype=_ONNX_DTYPES.get(name, name),
        shape=tuple(_size(axis) for axis in kind.shape.dim) if kind.HasField("shape") else None,
    )


def _size(axis: Any) -> Dimension:
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    return str(axis.dim_param) or None


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard operator set that `model` imports."""
    return max(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))


def rename_dimensions(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give symbolic dimensions new names, also where they stand inside an expression (`2*s0`)."""
    if not names:
        return
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.HasField("dim_param"):
                axis.dim_param = re.sub(
                    r"[A-Za-z_]\w*", lambda word: names.get(word[0], word[0]), axis.dim_param
                )


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove what an exporter noted about the machine it ran on: stack traces, paths, comments."""
    model.doc_string = ""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        for item in [*graph.node, *graph.input, *graph.output, *graph.value_info]:
            item.doc_string = ""
            if hasattr(item, "metadata_props"):  # absent before onnx 1.16
                del item.metadata_props[:]
        for node in graph.node:
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def write_model(
    model: onnx.ModelProto, path: str | os.PathLike[str], *, largest: int = LARGEST_MESSAGE
) -> Signature:
    """Complete the shapes of `model`, name its dynamic axes, check it in full, and write it to `path`.

    A model of more than `largest` bytes keeps its weights in `path` + `.data`. Raises PluginError
    where onnx's checker rejects the model, OutputError where the file cannot be written.
    """
    import onnx

    small = _bytes_of(model) <= largest
    _take_shapes(model, onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True))
    _name_axes(model)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    weights = target.with_name(f"{target.name}.data")
    with _whole_or_nothing([temporary] if small else [temporary, weights], target):
        if small:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        else:
            onnx.save_model(
                model, os.fspath(temporary), save_as_external_data=True, location=weights.name
            )
        _check(temporary)
        temporary.replace(target)
    return signature_of(model)


def write_streamed(
    model: onnx.ModelProto, weights: Mapping[str, Array], path: str | os.PathLike[str]
) -> Signature:
    """Write `model` to `path` and `weights`, by the names of its constants, one by one to `path` + `.data`.

    For models beyond what one message holds: no weight is copied, and one that is mapped from a file
    is read as it is written. The constants named in `weights` come without their data in `model`.
    Raises as `write_model` does.
    """
    import onnx

    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    data = target.with_name(f"{target.name}.data")
    with _whole_or_nothing([temporary, data], target):
        with data.open("wb") as stream:
            for tensor in model.graph.initializer:
                if tensor.name in weights:
                    _append(stream, tensor, weights[tensor.name], data.name)
        _take_shapes(model, onnx.shape_inference.infer_shapes(model, data_prop=True))
        _name_axes(model)
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        _check(temporary)
        temporary.replace(target)
    return signature_of(model)


def _bytes_of(model: onnx.ModelProto) -> int:
    """Return the size of the weights and of all else in `model`, which may be beyond 2 GB."""
    weights = sum(int(tensor.ByteSize()) for tensor in model.graph.initializer)
    # protobuf cannot even tell the size of a message beyond its limit
    return weights if weights > LARGEST_MESSAGE else int(model.ByteSize())


@contextlib.contextmanager
def _whole_or_nothing(written: list[Path], target: Path) -> Iterator[None]:
    """Remove the files `written` so far where anything goes wrong, and say what."""
    import onnx

    done = False
    try:
        yield
        done = True
    except OSError as error:
        raise OutputError(f"cannot write `{target}`: {error.strerror or error}") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise PluginError(
            f"the exporter wrote an ONNX model that onnx.checker rejects: {reason}"
        ) from error
    finally:
        if not done:
            for path in written:
                path.unlink(missing_ok=True)


def _check(path: Path) -> None:
    """Check the model at `path` in full.

    The checker wants the rank of every output, which some graphs (a Reshape to a computed shape) do
    not tell; such outputs are left out of what it sees. Raises its ValidationError.
    """
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    ranked = [v for v in model.graph.output if not _is_unranked(v)]
    if len(ranked) == len(model.graph.output):
        onnx.checker.check_model(os.fspath(path), full_check=True)
        return
    made = {name for node in model.graph.node for name in node.output}
    for value in model.graph.output:
        if _is_unranked(value) and value.name not in made:
            raise onnx.checker.ValidationError(f"no node makes the output {value.name}")
    del model.graph.output[:]
    model.graph.output.extend(ranked)
    copy = path.with_name(f"{path.name}.ranked")
    try:
        copy.write_bytes(model.SerializeToString())
        onnx.checker.check_model(os.fspath(copy), full_check=True)
    finally:
        copy.unlink(missing_ok=True)


def _is_unranked(value: onnx.ValueInfoProto) -> bool:
    kind = value.type
    return kind.HasField("tensor_type") and not kind.tensor_type.HasField("shape")


def _append(stream: BinaryIO, tensor: onnx.TensorProto, array: Array, location: str) -> None:
    """Write `array` behind what is in `stream`, and say in `tensor` where it is."""
    import numpy as np
    import onnx

    # aligned to pages, so that runtimes can map it
    stream.write(bytes(-stream.tell() % PAGE))
    offset = stream.tell()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    stream.write(little.reshape(-1).view(np.uint8).data)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", little.nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose large constants are inputs: enough for shapes, and far below 2 GB."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    named = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= LARGEST_SHAPE:
            graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in named:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    return light


def _take_shapes(model: onnx.ModelProto, inferred: onnx.ModelProto) -> None:
    """Take over what inference knows of outputs and inner values and the exporter did not say."""
    for value, better in zip(model.graph.output, inferred.graph.output, strict=True):
        ours, theirs = value.type.tensor_type, better.type.tensor_type
        if not theirs.HasField("shape"):
            continue
        if not ours.HasField("shape"):
            ours.shape.CopyFrom(theirs.shape)
            continue
        for axis, known in zip(ours.shape.dim, theirs.shape.dim, strict=False):
            if not axis.HasField("dim_value") and not axis.dim_param:
                axis.CopyFrom(known)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)


def _name_axes(model: onnx.ModelProto) -> None:
    """Name the dynamic axes that have no name yet after their tensor; drop shape inference's own names."""
    for value in [*model.graph.input, *model.graph.output]:
        for number, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.HasField("dim_value"):
                continue
            # `unk__12` is shape inference's or tf2onnx's counter: it says nothing and never stays
            if not axis.dim_param or re.fullmatch(r"unk__\d+", axis.dim_param):
                stem = re.sub(r"\W+", "_", value.name).strip("_") or "value"
                axis.dim_param = f"{stem}_axis{number}"
