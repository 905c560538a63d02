"""A mended model on disk: in one file, or with its weights beside it where it is too large."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from deploykit._plugins.converters.onnx_model.reading import OnnxModel, tensors

from deploykit.errors import OutputError, PluginError, SourceError
from deploykit.onnx_file import LARGEST_MESSAGE, signature_of, write_model
from deploykit.progress import phase
from deploykit.protocol import Signature


def write(model: OnnxModel, output: Path, *, largest: int = LARGEST_MESSAGE) -> Signature:
    """Write `model` to `output` and return the signature of the file.

    Weights that would make the file larger than `largest` bytes go to `output` + `.data`, copied
    from file to file without passing through memory as a whole. Raises SourceError where the model
    is invalid, OutputError where it cannot be written.
    """
    import onnx

    if model.proto.ByteSize() + _external_bytes(model) > largest:
        return _write_beside(model, output)
    if model.external:
        phase("reading external weights")
        onnx.external_data_helper.load_external_data_for_model(model.proto, str(model.folder))
    try:
        return write_model(model.proto, output)
    except PluginError as error:
        raise _invalid(model, error.message) from error


def _write_beside(model: OnnxModel, output: Path) -> Signature:
    import onnx
    import onnx_ir

    phase("copying external weights")
    ir = onnx_ir.from_proto(model.proto)
    onnx_ir.external_data.set_base_dir(ir.graph, model.folder)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(f"cannot write `{output}`: {error.strerror or error}") from error
    try:
        copy = folder / output.name
        onnx_ir.save(ir, copy, external_data=f"{output.name}.data")
        phase("checking the ONNX graph")
        onnx.checker.check_model(os.fspath(copy), full_check=True)
        inferred = folder / "inferred"
        onnx.shape_inference.infer_shapes_path(os.fspath(copy), os.fspath(inferred))
        inferred.replace(copy)
        signature = signature_of(onnx.load_model(copy, load_external_data=False))
        # the weights first: a model file that is there is complete
        Path(f"{copy}.data").replace(f"{output}.data")
        copy.replace(output)
    except OSError as error:
        raise OutputError(f"cannot write `{output}`: {error.strerror or error}") from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _invalid(model, str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return signature


def _external_bytes(model: OnnxModel) -> int:
    total = 0
    for tensor in tensors(model.proto):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            length = int(entries.get("length", 0))
            total += length or (model.folder / entries["location"]).stat().st_size
    return total


def _invalid(model: OnnxModel, reason: str) -> SourceError:
    line = next((line for line in reason.splitlines() if line.strip()), reason)
    line = line.removeprefix("the exporter wrote an ONNX model that onnx.checker rejects: ")
    return SourceError(
        f"`{model.path}` is not a valid ONNX model: {line}",
        hint="no repair known here helps; export the model again",
    )
