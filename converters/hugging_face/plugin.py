# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.24.0",
#     "onnx==1.23.2",
#     "onnxscript==0.7.2",
#     "numpy>=1.26,<3",
# ]
#
# [tool.deploykit]
# name = "hugging-face"
# summary = "Hugging Face folders: config.json and weights, through transformers"
# formats = ["hugging-face/folder"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# class = "the class of transformers that loads the weights (default: the first of config.json's architectures)"
# part = "convert only this part of an encoder-decoder: encoder (default: the whole model)"
# outputs = "which outputs to keep, separated by commas (default: all tensors, without any cache)"
# ///
"""Hugging Face folders to ONNX: the model that transformers builds, exported like any PyTorch module.

Nothing is downloaded. What the graph computes is one forward call: no generation loop, no cache.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from deploykit.onnx_file import opset_of
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Session,
    Signature,
    Source,
)

if TYPE_CHECKING:
    from deploykit._plugins.converters.hugging_face.loading import Loaded


def inspect(source: Source) -> Signature:
    """Return the names, dtypes and shapes of the model's tensors; it runs once to see its outputs.

    Raises SourceError where weights are missing or damaged, UnsupportedError where the class is not
    of transformers or an input cannot be made from the configuration, UsageError for a wrong setting.
    """
    loaded = _load(source)
    phase("running the model once")
    signature: Signature = loaded.program.signature()
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX. Raises as `inspect` does, and where an operator has no ONNX form."""
    from deploykit._plugins.converters.pytorch.axes import with_dynamic
    from deploykit._plugins.converters.pytorch.exporting import export

    loaded = _load(request.source)
    program = with_dynamic(loaded.program, request.dynamic)
    exported = export(program, request.opset)
    phase("checking the ONNX model")
    signature = exported.write(request.output)
    return ConvertResult(
        signature=signature,
        opset=opset_of(exported.model),
        repairs=(*loaded.notes, *exported.repairs),
        versions={name: version(name) for name in ("transformers", "torch", "onnx", "onnxscript")},
    )


def reference(request: ReferenceRequest) -> Session:
    """Return the model of transformers itself, in float32, in evaluation mode. Raises as `inspect`."""
    import torch
    from deploykit._plugins.converters.pytorch.plugin import TorchSession

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    session: Session = TorchSession(_load(request.source).program)
    return session


def _load(source: Source) -> Loaded:
    from deploykit._plugins.converters.hugging_face.loading import load

    return load(source)
