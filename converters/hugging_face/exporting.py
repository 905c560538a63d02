"""From the program to ONNX: by torch.export, and by tracing where that cannot follow the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit._plugins.converters.pytorch import exporting
from deploykit._plugins.converters.pytorch.program import Program

if TYPE_CHECKING:
    import onnx


def export(program: Program, opset: int | None) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the ONNX model and what was done differently. Raises UnsupportedError where neither way goes."""
    exported = exporting.export(program, opset)
    return exported.model, exported.repairs
