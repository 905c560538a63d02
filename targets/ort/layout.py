"""The layout of convolutions that ONNX Runtime bakes into a saved graph fits one kind of processor.

The NCHWc layout blocks channels by 16 with AVX-512 and by 8 without; the block is baked into the
saved weights, and a graph of the other kind would give wrong numbers without an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UnavailableError
from deploykit.onnx_graph import every_node
from deploykit.payload_files import read_record, write_record
from deploykit.processor import architecture, instruction_sets

if TYPE_CHECKING:
    import onnx

FILE = "layout.json"

OPTIMISER = "NchwcTransformer"
"""What ONNX Runtime calls the step that does it."""


def note(saved: onnx.ModelProto, payload: Path) -> list[str]:
    """Write down which processors the saved graph fits, where it does not fit all of them."""
    if not any(node.domain == "com.microsoft.nchwc" for node in every_node(saved.graph)):
        return []
    layout = _here()
    write_record(payload / FILE, layout)
    wide = "with" if layout["avx512f"] else "without"
    kind = f"{architecture()} {wide} AVX-512" if architecture() == "x86_64" else architecture()
    portable = "compile with optimization=extended for a bundle that runs on any processor"
    return [f"the saved layout suits {kind} only; {portable}"]


def check(payload: Path) -> None:
    """Raise UnavailableError where the saved graph is laid out for another kind of processor."""
    path = payload / FILE
    if not path.is_file():
        return
    built = read_record(path, dict)
    if built != _here():
        raise UnavailableError(
            f"the model is laid out for {built}, this machine is {_here()}",
            hint="compile it here, or with optimization=extended for any processor",
        )


def _here() -> dict[str, str | bool]:
    return {"architecture": architecture(), "avx512f": "avx512f" in instruction_sets()}
