"""What OpenVINO really does with a model: the precision, device, time and ONNX nodes of each operation.

The runtime model is the graph as it is executed; every operation of it says in `runtimePrecision`
what it computes in, and in `originalLayersNames` which layers of the model went into it
(OpenVINO's `ov::exec_model_info`).
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit._plugins.targets.openvino_runtime.graphs import DTYPES

from deploykit.errors import UnsupportedError
from deploykit.processor import instruction_sets
from deploykit.protocol import OperatorRun

if TYPE_CHECKING:
    import openvino

# OpenVINO's element types in the words of the protocol, and else numpy's
WORDS = {
    **{name: dtype for name, dtype in DTYPES.items() if name[0] in "iu"},
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "f64": "fp64",
    "boolean": "bool",
}

# Where eight bits are arithmetic of a quantised model, and not a mask or a pixel on its way. As the
# CPU plugin and the GPU plugin call them.
MULTIPLYING = {
    *("convolution", "deconvolution", "fullyconnected", "matmul", "rnnseq", "rnncell"),
    *("fully_connected", "gemm", "lstm_seq", "lstm_cell", "gru_seq", "rnn_seq"),
}

# Data on its way in, out or into another layout: no arithmetic, so no precision that could matter.
# The CPU and the GPU plugin have names of their own for them.
BOOKKEEPING = {
    *("const", "constant", "data", "input", "input_layout", "parameter", "output", "result"),
    *("reorder", "reshape"),
}

_SUBGRAPH = re.compile(r"^subgraph(\d+): ")


@dataclass(frozen=True)
class Executed:
    """One operation of the runtime model."""

    name: str
    operator: str
    precision: str
    layers: str


def executed(compiled: openvino.CompiledModel) -> tuple[Executed, ...]:
    """Return the operations that `compiled` executes; none where the device does not tell."""
    try:
        operations = compiled.get_runtime_model().get_ordered_ops()
    except RuntimeError:
        return ()  # the NPU has no runtime model
    found = []
    for operation in operations:
        facts = {
            key: str(value.astype(str)) if hasattr(value, "astype") else str(value)
            for key, value in operation.get_rt_info().items()
        }
        operator, precision = facts.get("layerType", ""), facts.get("runtimePrecision", "")
        if precision in ("u8", "i8") and operator.lower() in MULTIPLYING:
            precision = "int8"
        found.append(
            Executed(
                name=operation.get_friendly_name(),
                operator=operator,
                precision=WORDS.get(precision, precision),
                layers=facts.get("originalLayersNames", ""),
            )
        )
    return tuple(found)


def devices_of(compiled: openvino.CompiledModel) -> tuple[str, ...]:
    """Return the devices that `compiled` runs on, such as `cpu`, as OpenVINO reports them."""
    names = compiled.get_property("EXECUTION_DEVICES")
    # in parentheses: one that only begins, until the chosen one is ready
    return tuple(str(name).strip("()").lower() for name in names)


def precision_notes(
    operations: Iterable[Executed], precision: str, *, halves: bool, device: str
) -> list[str]:
    """Return notes about the precision that really runs. `halves`: the model itself has 16-bit floats.

    Raises UnsupportedError where no operation runs in the precision asked for, or one runs in less
    than fp32 though fp32 was asked for.
    """
    working = [each for each in operations if each.operator.lower() not in BOOKKEEPING]
    counts = Counter(each.precision for each in working)
    total = counts.total()
    ran = ", ".join(f"{count} in {word}" for word, count in counts.most_common())
    if not total:
        return ["OpenVINO does not tell in which precision this device runs the operations"]
    if precision == "fp32":
        narrow = sorted({"fp16", "bf16"} & set(counts))
        if narrow and not halves:
            raise UnsupportedError(
                f"OpenVINO computes in {' and '.join(narrow)} although fp32 was asked for ({ran})",
                hint=f"use --precision {narrow[0]}",
            )
        return _int8_notes(working)
    if precision == "int8":
        notes = _int8_notes(working)
        if not notes:
            raise UnsupportedError(
                f"no operation of the model runs in int8 ({ran}): int8 comes from the model itself",
                hint="quantise the model first (QuantizeLinear and DequantizeLinear nodes)",
            )
        return notes
    if not counts[precision]:
        instead = next((word for word in ("bf16", "fp16") if counts[word]), "fp32")
        raise UnsupportedError(
            f"OpenVINO runs no operation in {precision} here ({ran}): it would take no effect",
            hint=f"use --precision {instead}",
        )
    said = f"{counts[precision]} of {total} operations run in {precision}, the others in their own type"
    notes = [f"{said} ({ran})"]
    if precision == "bf16" and device == "cpu":
        notes += _bf16_notes()
    return notes


def _int8_notes(working: list[Executed]) -> list[str]:
    """Return a note where convolutions and the like run in int8: those of a quantised model do."""
    multiplying = [each for each in working if each.operator.lower() in MULTIPLYING]
    narrow = sum(each.precision == "int8" for each in multiplying)
    if not narrow:
        return []
    said = f"{narrow} of {len(multiplying)} convolutions and matrix products run in int8"
    return [f"{said}, as the model is quantised"]


def _bf16_notes() -> list[str]:
    have = instruction_sets()
    if not have & {"amx_bf16", "avx512_bf16", "bf16"}:
        return ["this processor has no bf16 instructions: emulated, slower than fp32"]
    if "amx_bf16" not in have:
        return ["this processor has no AMX: bf16 may be slower than fp32"]
    return []


def has_halves(model: openvino.Model) -> bool:
    """Whether a value of the model itself is a 16-bit float."""
    return any(
        output.get_element_type().get_type_name() in ("f16", "bf16")
        for operation in model.get_ops()
        for output in operation.outputs()
    )


class NodeNames:
    """From OpenVINO's names of layers to the ONNX nodes that they came from.

    A layer is called after its node; after an output of it where the node has no name or the output
    is the model's, after both where a node became several layers (`NODE_OUTPUT`). What OpenVINO's
    passes add is a suffix (`NODE/WithoutBiases`, `NODE_original`), or a name of their own that
    nothing in the model has. `layers` are those that a node became besides, from `inner_layers`.
    """

    def __init__(
        self, nodes: Mapping[str, tuple[str, ...]], layers: Mapping[str, str] | None = None
    ) -> None:
        self._nodes = dict(layers or {})
        for name, outputs in nodes.items():
            for output in outputs:
                self._nodes.setdefault(output, name)
                self._nodes.setdefault(f"{name}_{output}", name)
        self._nodes.update({name: name for name in nodes})

    def of(self, layers: str) -> tuple[str, ...]:
        """Return the nodes behind `layers`, OpenVINO's list with commas, each once and in order."""
        pieces = layers.split(",")
        found: dict[str, None] = {}
        start = 0
        while start < len(pieces):
            # a node's own name may hold commas: the longest run of pieces that is known wins
            for end in range(len(pieces), start, -1):
                node = self._node(",".join(pieces[start:end]))
                if node is not None:
                    found[node] = None
                    start = end
                    break
            else:
                start += 1
        return tuple(found)

    def _node(self, layer: str) -> str | None:
        while layer:
            for name in (layer, layer.removesuffix("_original")):
                if name in self._nodes:
                    return self._nodes[name]
            layer, _, suffix = layer.rpartition("/")
            if "," in suffix:
                break  # that is another layer
        return None


def inner_layers(model: openvino.Model, nodes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the ONNX node of each layer of `model`, as it was read, that does not bear its name.

    The last layers that a node became give the node's outputs, which keep their names; those before
    them, such as an LSTM before the transpositions of its outputs, lead to them.
    """
    producers = {output: name for name, outputs in nodes.items() for output in outputs}
    owners: dict[str, str] = {}
    for operation in reversed(model.get_ordered_ops()):
        if operation.get_type_name() in ("Constant", "Parameter", "Result"):
            continue
        outputs = operation.outputs()
        names = sorted(name for output in outputs for name in output.get_names())
        readers = (
            reader.get_node().get_friendly_name()
            for output in outputs
            for reader in output.get_target_inputs()
        )
        candidates = [producers[name] for name in names if name in producers]
        candidates += [owners[reader] for reader in readers if reader in owners]
        if candidates:
            owners[operation.get_friendly_name()] = candidates[0]
    return {layer: node for layer, node in owners.items() if layer not in nodes}


def placement(model: openvino.Model, found: Mapping[str, str]) -> dict[str, str]:
    """Return the device of each layer, in our words, as `Core.query_model` has `found` it."""
    return {
        operation.get_friendly_name(): found[operation.get_friendly_name()].lower()
        for operation in model.get_ops()
        if operation.get_type_name() != "Constant" and operation.get_friendly_name() in found
    }


def operator_runs(
    operations: Iterable[Executed],
    profiles: Iterable[Iterable[openvino.ProfilingInfo]],
    names: NodeNames,
    devices: tuple[str, ...],
    placed: Mapping[str, str],
) -> tuple[OperatorRun, ...]:
    """Return the operations that ran, in order: the median time of several `profiles`.

    `devices` are those of the compiled model; where it is more than one, `placed` tells which layer
    is on which, and an operation that no layer vouches for is where the rest of its subgraph is.
    """
    known = {each.name: each for each in operations}
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for profile in profiles:
        for info in profile:
            if str(info.status).endswith("EXECUTED"):
                times.setdefault(info.node_name, []).append(info.real_time.total_seconds() * 1e6)
                kinds[info.node_name] = info.node_type
    rows = []
    for full, spent in times.items():
        name = _SUBGRAPH.sub("", full)
        operation = known.get(name)
        layers = operation.layers if operation else name
        rows.append((full, name, operation, names.of(layers), layers, spent))
    subgraphs: dict[str, str] = {}
    for full, _, _, _, layers, _ in rows:
        device = next((placed[layer] for layer in layers.split(",") if layer in placed), None)
        if device is not None:
            subgraphs.setdefault(_subgraph(full), device)
    return tuple(
        OperatorRun(
            name=name,
            operator=kinds[full],
            nodes=nodes,
            device=devices[0]
            if len(devices) == 1
            else subgraphs.get(_subgraph(full), ",".join(devices)),
            precision=operation.precision if operation else "",
            time_us=statistics.median(spent),
        )
        for full, name, operation, nodes, _, spent in rows
    )


def _subgraph(name: str) -> str:
    found = _SUBGRAPH.match(name)
    return found.group(1) if found else ""
