"""What ran where, and for how long: ONNX Runtime's own profile of a few runs.

The profile is a list of Chrome trace events. Those of the category `Node` whose names end in
`_kernel_time` are the operations; `model_run` spans a whole run. Times are in microseconds.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.ort.providers import device_of

from deploykit.protocol import OperatorRun

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

    Array = np.ndarray[Any, Any]

RUNS = 5
"""So many runs are counted, after one that is not."""

ENOUGH_S = 3.0
"""After so many seconds a second run ends it: a profile of a slow model with loops is large."""

_SUFFIX = "_kernel_time"
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# operators that compute in int8 although float32 may come out
_INTEGER = re.compile(r"Integer|^QLinear|^QGemm$|^DynamicQuantize(MatMul|LSTM)$|^QAttention$")

Key = tuple[str, str, str]
"""Name, operator, provider."""


def prepare(options: onnxruntime.SessionOptions, folder: Path) -> None:
    """Let a session that is opened with `options` write its profile into `folder`."""
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    # since 1.24; older releases ignore it, and name no nodes inside what a provider compiled
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")


def audit(
    session: onnxruntime.InferenceSession,
    feed: Mapping[str, Array],
    nodes: Mapping[str, list[str]],
) -> tuple[OperatorRun, ...]:
    """Run a session that was opened with `prepare` and return its operations in order.

    `nodes` are the ONNX nodes behind the names of the optimised graph. Of what a provider compiled
    into one operation, those are its nodes that kept their names.
    """
    begun = time.monotonic()
    for number in range(RUNS + 1):
        session.run(None, dict(feed))
        if number and time.monotonic() - begun > ENOUGH_S:
            break
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    compiled = _compiled(session, events, set(nodes))
    return tuple(
        OperatorRun(
            name=key[0],
            operator=key[1],
            nodes=tuple(compiled.get(key, nodes.get(key[0], []))),
            device=device_of(key[2]),
            precision="" if key in compiled else precision,
            time_us=median,
        )
        for key, (median, precision) in _medians(events).items()
    )


def _operations(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith(_SUFFIX)
        and event["args"].get("provider")
    ]


def _key(event: dict[str, Any]) -> Key:
    args = event["args"]
    return event["name"].removesuffix(_SUFFIX), args["op_name"], args["provider"]


def _medians(events: list[dict[str, Any]]) -> dict[Key, tuple[float, str]]:
    """Return each operation's median time over the runs but the first, and its precision.

    An operation in a loop counts once, with all its time; one that holds others (a loop, a branch)
    has the time that they leave.
    """
    runs = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "Session" and event["name"] == "model_run"
    )
    spent: list[dict[Key, float]] = [{} for _ in runs]
    precisions: dict[Key, str] = {}
    operations = _operations(events)
    own = _own_times(operations)
    current = 0
    for event, spent_us in sorted(
        zip(operations, own, strict=True), key=lambda item: int(item[0]["ts"])
    ):
        while current + 1 < len(runs) and event["ts"] >= runs[current + 1][0]:
            current += 1
        key = _key(event)
        spent[current][key] = spent[current].get(key, 0.0) + spent_us
        precisions.setdefault(key, _precision(event))
    counted = spent[1:] or spent
    return {
        key: (statistics.median(run.get(key, 0.0) for run in counted), precision)
        for key, precision in precisions.items()
    }


def _own_times(operations: list[dict[str, Any]]) -> list[float]:
    """Return the time of each operation less that of the operations within it, on its thread."""
    own = [float(event["dur"]) for event in operations]
    open_: dict[object, list[int]] = {}
    # of two that begin together the longer one is the outer
    order = sorted(
        range(len(operations)), key=lambda i: (operations[i]["ts"], -operations[i]["dur"])
    )
    for index in order:
        event = operations[index]
        stack = open_.setdefault(event["tid"], [])
        while stack and _end(operations[stack[-1]]) <= event["ts"]:
            stack.pop()
        if stack and event["ts"] + event["dur"] <= _end(operations[stack[-1]]):
            own[stack[-1]] = max(0.0, own[stack[-1]] - event["dur"])
        stack.append(index)
    return own


def _end(event: dict[str, Any]) -> int:
    end: int = event["ts"] + event["dur"]
    return end


def _precision(event: dict[str, Any]) -> str:
    """Return what an operation computed in, by its name or the type of its first output."""
    if _INTEGER.search(event["args"]["op_name"]):
        return "int8"
    for types in event["args"].get("output_type_shape", [])[:1]:
        return next((_PRECISIONS.get(name, "") for name in types), "")
    return ""


def _compiled(
    session: onnxruntime.InferenceSession, events: list[dict[str, Any]], known: set[str]
) -> dict[Key, list[str]]:
    """Return the operations that a provider compiled of many, each with its ONNX nodes.

    ONNX Runtime numbers them as it took them from the graph, and lists them in that order.
    """
    assigned: dict[str, list[list[str]]] = {}
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            names = [_original(node.name, known) for node in part.get_nodes()]
            kept = list(dict.fromkeys(name for name in names if name in known))
            assigned.setdefault(part.ep_name, []).append(kept)
    found: dict[str, list[Key]] = {}
    for key in dict.fromkeys(map(_key, _operations(events))):
        if key[0].startswith(f"{key[2]}_"):
            found.setdefault(key[2], []).append(key)
    compiled: dict[Key, list[str]] = {}
    for provider, keys in found.items():
        keys.sort(key=lambda key: [int(number) for number in re.findall(r"\d+", key[0])[-2:]])
        parts = assigned.get(provider, [])
        matching = parts if len(parts) == len(keys) else [[] for _ in keys]
        compiled.update(zip(keys, matching, strict=True))
    return compiled


def _original(name: str, known: set[str]) -> str:
    """Return the name of the ONNX node that a change of layout gave another name."""
    return name if name in known else re.sub(r"_token_\d+$", "", name)
