"""What TensorRT tells of an engine's layers: kind, type, the ONNX nodes in them, and their times."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deploykit._plugins.targets.tensorrt_engine.narrowing import PREFIX

from deploykit.protocol import OperatorRun

# TensorRT's words for element types within a tensor's "Format/Datatype"
_WORDS = (
    ("bf16", r"bfloat16|bf16"),
    ("fp16", r"half|fp16|float16"),
    ("tf32", r"tf32"),
    ("fp8", r"fp8"),
    ("int8", r"int8"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
    ("fp32", r"float|fp32"),
)
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_UNNAMED = "node_of_"
"""What the parser puts before the first output of a node without a name."""


@dataclass(frozen=True)
class Layer:
    """One layer, as the engine inspector describes it."""

    kind: str
    precision: str
    nodes: tuple[str, ...]


def layers(information: str, nodes: Collection[str]) -> dict[str, Layer]:
    """Return the layers in the inspector's JSON by name; `nodes` are the model's own.

    Layers of which only the name is told have no kind, type and nodes.
    """
    found: dict[str, Layer] = {}
    for entry in json.loads(information).get("Layers", []):
        if isinstance(entry, str):
            found[entry] = Layer("", "", ())
        else:
            found[str(entry.get("Name", ""))] = Layer(
                kind=str(entry.get("LayerType", "")),
                precision=_precision(entry),
                nodes=_nodes(str(entry.get("Metadata", "")), nodes),
            )
    return found


def _precision(entry: Mapping[str, Any]) -> str:
    """Return the narrowest type among the layer's inputs: what it multiplies."""
    if "tf32" in str(entry.get("TacticName", "")).lower():
        return "tf32"
    words = [_word(str(tensor.get("Format/Datatype", ""))) for tensor in entry.get("Inputs", [])]
    for wanted, _ in _WORDS:
        if wanted in words and wanted in ("int8", "fp8"):
            return wanted
    return next(iter(filter(None, words)), "")


def _word(text: str) -> str:
    return next((word for word, signs in _WORDS if re.search(signs, text, re.IGNORECASE)), "")


def _nodes(metadata: str, known: Collection[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in _NODE.findall(metadata):
        node = name if name in known else name.removeprefix(_UNNAMED)
        if node in known and not node.startswith(PREFIX):
            found[node] = None
    return tuple(found)


def operator_runs(
    times_ms: Mapping[str, Iterable[float]], described: Mapping[str, Layer]
) -> tuple[OperatorRun, ...]:
    """Return each layer that ran, with the median of its times."""
    nothing = Layer("", "", ())
    return tuple(
        OperatorRun(
            name=name,
            operator=described.get(name, nothing).kind or "layer",
            nodes=described.get(name, nothing).nodes,
            device="gpu",
            precision=described.get(name, nothing).precision,
            time_us=statistics.median(spent) * 1e3,
        )
        for name, spent in times_ms.items()
    )


def collecting_profiler(trt: Any) -> Any:
    """Return a profiler for TensorRT that keeps the times of layers, in ms, in its dict `times`."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, name: str, milliseconds: float) -> None:
            self.times.setdefault(name, []).append(milliseconds)

    return Profiler()
