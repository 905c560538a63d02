"""What runs in MNN: its operations, timed through the callbacks around each."""

from __future__ import annotations

import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

from deploykit._plugins.targets.mnn_net import session

from deploykit.errors import UnsupportedError
from deploykit.protocol import OperatorRun, OperatorsRequest
from deploykit.tensors import read_tensors

NODES = "nodes.json"
_RUNS = 7

# what MNN appends to the name of a value for the operations that it makes of one node
_SUFFIX = re.compile(r"(_raster_\d+|__matmul_converted|__before_tr)$")


def operators(request: OperatorsRequest) -> tuple[OperatorRun, ...]:
    """Return every operation in the order of a run, with the median of its times.

    The time includes two calls of Python, about a microsecond.
    """
    load = request.load
    mnn = session.runtime()
    payload = Path(load.payload)
    nodes = json.loads((payload / NODES).read_text(encoding="utf-8"))
    feed = read_tensors(Path(request.feed))
    network = mnn.Interpreter(str(payload / session.MODEL))
    if load.settings.get("winograd") == "false":
        network.setSessionHint(session.WINOGRAD_LEVEL, 0)
    run = network.createSession(session.configuration(load))
    tensors = network.getSessionInputAll(run)
    arrays = {spec.name: session.fed(spec, feed[spec.name]) for spec in load.signature.inputs}
    for name, array in arrays.items():
        if name in tensors:
            network.resizeTensor(tensors[name], array.shape)
    network.resizeSession(run)
    for name, array in arrays.items():
        if name in tensors:
            tensors[name].copyFromHostTensor(_tensor(mnn, array))
    rounds = [_round(network, run) for _ in range(_RUNS + 1)][1:]  # the first one warms up
    names = [(name, kind) for name, kind, _ in rounds[0]]
    if not names or any([(name, kind) for name, kind, _ in each] != names for each in rounds):
        raise UnsupportedError(
            "MNN profiles no model with control flow or sizes that depend on values"
        )
    return tuple(
        OperatorRun(
            name=name,
            operator=kind,
            nodes=_nodes_of(name, nodes),
            device="cpu",
            precision=load.precision,
            time_us=statistics.median(each[number][2] for each in rounds),
        )
        for number, (name, kind) in enumerate(names)
    )


def _round(network: Any, run: Any) -> list[tuple[str, str, float]]:
    """Run once; return each operation's name, type and microseconds."""
    found: list[tuple[str, str, float]] = []
    begun = 0.0

    def begin(_tensors: Any, _info: Any) -> bool:
        nonlocal begun
        begun = time.perf_counter()
        return True

    def end(_tensors: Any, info: Any) -> bool:
        spent = time.perf_counter() - begun
        found.append((info.getName(), info.getType(), spent * 1e6))
        return True

    network.runSessionWithCallBackInfo(run, begin, end)
    return found


def _tensor(mnn: Any, array: Any) -> Any:
    types = {
        "float32": mnn.Halide_Type_Float,
        "int32": mnn.Halide_Type_Int,
        "uint8": mnn.Halide_Type_Uint8,
    }
    kind = types.get(str(array.dtype))
    if kind is None:
        raise UnsupportedError(f"MNN profiles no model with inputs of {array.dtype}")
    return mnn.Tensor(array.shape, kind, array, mnn.Tensor_DimensionType_Caffe)


def _nodes_of(name: str, nodes: dict[str, str]) -> tuple[str, ...]:
    """Return the ONNX node whose value MNN's operation is named after, if it is one."""
    while name:
        if name in nodes:
            return (nodes[name],)
        shorter = _SUFFIX.sub("", name)
        if shorter == name:
            break
        name = shorter
    return ()
