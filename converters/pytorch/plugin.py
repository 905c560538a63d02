# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "numpy>=1.26,<3"]
#
# [tool.deploykit]
# name = "pytorch"
# summary = "PyTorch modules, exported programs, TorchScript and weights with their code"
# formats = [
#     "pytorch/module",
#     "pytorch/exported_program",
#     "pytorch/torchscript",
#     "pytorch/lite",
#     "pytorch/state_dict",
# ]
# functions = ["inspect", "convert", "reference"]
# compiler = "torch.compile"
#
# [tool.deploykit.settings]
# module = "weights alone: the python code of the network, `FILE.py:callable`; it may return (module, example_inputs)"
# weights = "`FILE.py:callable`: the file of weights to load into the module (.pth, .pt, .bin, .safetensors)"
# key = "checkpoint with several sets of weights: which one, such as `ema` or `model.state_dict`"
# outputs = "names for the outputs in order, separated by commas (default: dict keys, else output_0, …)"
# constants = "TorchScript: values of arguments that are no tensors, as JSON such as {\"sr\": 16000}"
# ///
"""PyTorch to ONNX, through torch.export wherever there is python code or an exported program."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_file import opset_of
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Signature,
    Source,
    TensorSpec,
)

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.pytorch.program import Program

    Array = np.ndarray[Any, Any]


def inspect(source: Source) -> Signature:
    """Return the names, dtypes and shapes of the model's tensors; it runs once to see its outputs."""
    from deploykit._plugins.converters.pytorch.loading import load

    program = load(source)
    phase("running the model once")
    signature: Signature = program.signature()
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX.

    Raises UnsupportedError where torch.export cannot trace it or an operator has no ONNX form.
    """
    from deploykit._plugins.converters.pytorch.exporting import export
    from deploykit._plugins.converters.pytorch.loading import load

    program = load(request.source, request.dynamic)
    exported = export(program, request.opset)
    phase("checking the ONNX model")
    signature = exported.write(request.output)
    return ConvertResult(
        signature=signature,
        opset=opset_of(exported.model),
        repairs=exported.repairs,
        versions={name: version(name) for name in ("torch", "onnx", "onnxscript")},
    )


def reference(request: ReferenceRequest) -> TorchSession:
    """Return the model in PyTorch itself, without gradients, in evaluation mode.

    Raises UnsupportedError, UnavailableError where torch.compile is asked for and cannot take the
    model or finds no C++ compiler.
    """
    import torch
    from deploykit._plugins.converters.pytorch.loading import load

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    program = load(request.source)
    return TorchSession(_compiled(program) if request.compiled else program)


def _compiled(program: Program) -> Program:
    """Return the program as torch.compile makes it; the work is done at the first call."""
    import torch

    if program.kind == "script":
        raise UnsupportedError("torch.compile takes no TorchScript", hint="measure it as `native`")
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise UnavailableError(
            "torch.compile makes its code with a C++ compiler, and there is none",
            hint="install g++ or clang++",
        )
    phase("torch.compile")
    return dataclasses.replace(program, function=torch.compile(program.function))


class TorchSession:
    """A `Program` that takes and gives numpy arrays by name."""

    def __init__(self, program: Any) -> None:
        self._program = program
        signature: Signature = program.signature()
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        return _arrays(self._program.call(self._leaves(feed)))

    def bind(self, feed: Mapping[str, Array]) -> BoundTorch:
        """Fix the inputs as torch tensors; calling the result runs the model on them."""
        return BoundTorch(self._program, self._leaves(feed))

    def close(self) -> None:
        """Let the model go."""
        self._program = None

    def _leaves(self, feed: Mapping[str, Array]) -> list[Any]:
        leaves = list(self._program.leaves)
        for item in self._program.inputs:
            leaves[item.leaf] = _tensor(feed[item.name])
        return leaves


class BoundTorch:
    """One call of the model on fixed tensors."""

    def __init__(self, program: Any, leaves: list[Any]) -> None:
        import torch

        self._program = program
        self._args, self._kwargs = program.arguments(leaves)
        self._no_grad = torch.no_grad
        self._last: Any = None

    def __call__(self) -> None:
        """Run once; on a CPU torch returns when the outputs are there."""
        with self._no_grad():
            self._last = self._program.function(*self._args, **self._kwargs)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return _arrays(self._program.named_outputs(self._last))


def _tensor(array: Array) -> Any:
    import numpy as np
    import torch

    copy = np.array(array, order="C")  # torch wants memory it may write
    if copy.dtype.name == "bfloat16":
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def _arrays(named: list[tuple[str, Any]]) -> dict[str, Array]:
    import numpy as np
    import torch

    arrays = {}
    for name, tensor in named:
        if tensor.dtype == torch.bfloat16:
            import ml_dtypes  # comes with onnx

            words = tensor.contiguous().view(torch.int16).numpy()
            arrays[name] = np.array(words).view(ml_dtypes.bfloat16)
        else:
            arrays[name] = np.array(tensor.numpy())
    return arrays
