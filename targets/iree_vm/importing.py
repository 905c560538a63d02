"""From the ONNX graph to IREE's module, by the importer that comes with its compiler."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UnsupportedError
from deploykit.onnx_graph import every_node

if TYPE_CHECKING:
    import onnx

FUNCTION = "main"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the importer's prints and warnings out of the way: what matters becomes an error."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def write_module(model: onnx.ModelProto, path: Path) -> None:
    """Write the model as MLIR bytecode with one function, FUNCTION; changes `model`.

    Raises UnsupportedError where the importer cannot express a type or an attribute.
    """
    from iree.compiler.extras import onnx_importer
    from iree.compiler.ir import Context, MLIRError

    model.graph.name = FUNCTION
    _as_bytes(model)
    with _quiet(), Context() as context:
        info = onnx_importer.ModelInfo(model)
        module = info.create_module(context=context).operation
        importer = onnx_importer.NodeImporter.define_function(info.main_graph, module)
        try:
            importer.import_all()
            module.verify()
        except (onnx_importer.OnnxImportError, MLIRError) as error:
            said = " ".join(str(error).split())[:300]
            raise UnsupportedError(
                f"target iree cannot import the graph: {said}",
                hint="fixed input shapes (--shape) often help",
            ) from error
        with path.open("wb") as stream:
            module.write_bytecode(stream)


def _as_bytes(model: onnx.ModelProto) -> None:
    """Put the numbers of every tensor into its `raw_data`: the one form that is read for any type."""
    from onnx import numpy_helper

    def mended(tensor: onnx.TensorProto) -> None:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))

    for tensor in model.graph.initializer:
        mended(tensor)
    for node in every_node(model.graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                mended(attribute.t)
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                for tensor in graph.initializer:
                    mended(tensor)
