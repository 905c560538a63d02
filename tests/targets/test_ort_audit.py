"""Where the operations of an ONNX Runtime session ran, how long, and which ONNX nodes they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deploykit._plugins.targets.ort import audit, nodes
from onnx import TensorProto, helper, numpy_helper

from deploykit.protocol import LoadRequest, OperatorRun, OperatorsRequest
from deploykit.tensors import write_tensors

TARGET = "onnxruntime"
FLOAT = TensorProto.FLOAT


class Recorded:
    """A session whose profile was recorded before; `parts` are what its providers compiled."""

    def __init__(self, path: Path, parts: list[tuple[str, list[str]]]) -> None:
        self.path = path
        self.parts = parts
        self.runs = 0

    def run(self, _names: object, _feed: object) -> None:
        self.runs += 1

    def end_profiling(self) -> str:
        return str(self.path)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        class Node:
            def __init__(self, name: str) -> None:
                self.name = name

        class Part:
            def __init__(self, ep_name: str, names: list[str]) -> None:
                self.ep_name = ep_name
                self.names = names

            def get_nodes(self) -> list[Node]:
                return [Node(name) for name in self.names]

        return [Part(*part) for part in self.parts]


Recording = Callable[..., tuple[OperatorRun, ...]]


@pytest.fixture
def recorded(tmp_path: Path) -> Recording:
    """Audit events given as (run, name, operator, start, duration, more)."""

    def audited(
        events: list[tuple[Any, ...]],
        nodes: dict[str, list[str]] | None = None,
        parts: list[tuple[str, list[str]]] | None = None,
    ) -> tuple[OperatorRun, ...]:
        written = []
        for run in sorted({event[0] for event in events}):
            written.append(
                {"cat": "Session", "name": "model_run", "ts": run * 1000, "dur": 900, "tid": 1}
            )
        for run, name, operator, start, duration, more in events:
            args = {
                "op_name": operator,
                "provider": more.get("provider", "CPUExecutionProvider"),
                "output_type_shape": [{more.get("type", "float"): [1]}],
            }
            written.append(
                {
                    "cat": "Node",
                    "name": f"{name}_kernel_time",
                    "ts": run * 1000 + start,
                    "dur": duration,
                    "tid": more.get("tid", 1),
                    "args": args,
                }
            )
        # as the runtime writes them: an operation when it has ended, its run last
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(written[::-1]))
        session: Any = Recorded(path, parts or [])
        found: tuple[OperatorRun, ...] = audit.audit(session, {}, nodes or {})
        assert session.runs == audit.RUNS + 1
        return found

    return audited


def test_the_median_leaves_the_first_run_out(recorded: Recording) -> None:
    events: list[Any] = [
        (run, "c", "Conv", 1, time, {}) for run, time in enumerate([800, 10, 30, 20])
    ]
    (run,) = recorded(events)
    assert (run.name, run.operator, run.device, run.precision) == ("c", "Conv", "cpu", "fp32")
    assert run.time_us == 20


def test_a_loop_has_the_time_that_its_body_leaves(recorded: Recording) -> None:
    events: list[tuple[Any, ...]] = []
    for run in range(3):
        events.append((run, "loop", "Loop", 0, 100, {}))
        events += [(run, "add", "Add", 10 + 20 * turn, 15, {}) for turn in range(4)]
        # on another thread it takes nothing from the loop
        events.append((run, "far", "Mul", 20, 50, {"tid": 2}))
    times = {each.name: each.time_us for each in recorded(events)}
    assert times == {"loop": 40, "add": 60, "far": 50}


def test_what_did_not_run_every_time_counts_as_nothing_there(recorded: Recording) -> None:
    events: list[Any] = [(run, "c", "Conv", 1, 10, {}) for run in range(4)]
    events.append((1, "rare", "Resize", 20, 99, {}))
    assert {each.name: each.time_us for each in recorded(events)} == {"c": 10, "rare": 0}


@pytest.mark.parametrize(
    ("operator", "output", "precision"),
    [
        ("Conv", "float", "fp32"),
        ("Conv", "float16", "fp16"),
        ("Conv", "bfloat16", "bf16"),
        ("QLinearConv", "uint8", "int8"),
        ("MatMulIntegerToFloat", "float", "int8"),
        ("DequantizeLinear", "float", "fp32"),
        ("Shape", "int64", ""),
    ],
)
def test_precisions(recorded: Recording, operator: str, output: str, precision: str) -> None:
    (run,) = recorded([(run, "c", operator, 1, 10, {"type": output}) for run in range(2)])
    assert run.precision == precision


def test_what_a_provider_compiled_is_told_by_its_nodes(recorded: Recording) -> None:
    qnn = {"provider": "QNNExecutionProvider"}
    events: list[tuple[Any, ...]] = []
    for run in range(2):
        # the later part ran first; its number tells its place in the graph
        for number, start in ((2, 0), (10, 40)):
            name = f"QNNExecutionProvider_QNN_77_{number}_0"
            events.append((run, name, f"QNN_77_{number}", start, 30, qnn))
        events.append((run, "nz", "NonZero", 80, 5, {"type": "int64"}))
    known = {name: [name] for name in ("conv", "relu", "mul", "nz")}
    parts = [
        ("QNNExecutionProvider", ["Transpose", "conv_token_1", "relu"]),
        ("CPUExecutionProvider", ["nz"]),
        ("QNNExecutionProvider", ["mul"]),
    ]
    found = {each.name: each for each in recorded(events, known, parts)}
    first = found["QNNExecutionProvider_QNN_77_2_0"]
    assert (first.device, first.nodes, first.precision) == ("qnn", ("conv", "relu"), "")
    assert found["QNNExecutionProvider_QNN_77_10_0"].nodes == ("mul",)
    assert (found["nz"].device, found["nz"].nodes) == ("cpu", ("nz",))
    # what cannot be told apart is not guessed
    guessed = recorded(events, known, parts[:2])
    assert [each.nodes for each in guessed if each.device == "qnn"] == [(), ()]


def _operators(bench: Any, feed: dict[str, Any], folder: Path) -> tuple[OperatorRun, ...]:
    write_tensors(folder / "feed.npz", feed)
    load = LoadRequest(
        payload=str(bench.payload),
        signature=bench.result.signature,
        device="cpu",
        threads=1,
        settings=bench.result.settings,
    )
    request = OperatorsRequest(load=load, feed=str(folder / "feed.npz"))
    found: tuple[OperatorRun, ...] = bench.module.operators(request)
    return found


@pytest.mark.parametrize("optimization", ["all", "extended", "none"])
def test_every_node_of_the_model_is_found_in_one_operation(
    bench: Any, convolutions: onnx.ModelProto, tmp_path: Path, optimization: str
) -> None:
    model = onnx.ModelProto.FromString(convolutions.SerializeToString())
    for node in model.graph.node:
        node.name = f"the {node.output[0]}"
    bench.compile(model, settings={"optimization": optimization})
    feed = {"x": np.ones((1, 16, 20, 36), np.float32)}
    found = _operators(bench, feed, tmp_path)
    named = [name for run in found for name in run.nodes]
    assert sorted(named) == sorted(node.name for node in model.graph.node)
    assert {run.device for run in found} == {"cpu"}
    assert all(run.precision == "fp32" for run in found)
    assert all(run.time_us is not None and run.time_us >= 0 for run in found)
    if optimization != "none":
        assert ("the c1", "the r1") in [run.nodes for run in found], "the fused convolution"
    assert not list(Path.cwd().glob("*profile*.json"))


def test_branches(bench: Any, tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node(operator, ["x", "two"], [f"{name}_y"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", FLOAT, [3])],
        )

    graph = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["positive"],
                ["y"],
                name="choice",
                then_branch=branch("times", "Mul"),
                else_branch=branch("power", "Pow"),
            )
        ],
        "branches",
        [
            helper.make_tensor_value_info("x", FLOAT, [3]),
            helper.make_tensor_value_info("positive", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", FLOAT, [3])],
        [numpy_helper.from_array(np.array([2, 2, 2], np.float32), "two")],
    )
    opsets = [helper.make_opsetid("", 17)]
    bench.compile(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    feed = {"x": np.ones(3, np.float32), "positive": np.array(True)}
    found = {run.name: run.nodes for run in _operators(bench, feed, tmp_path)}
    assert found == {"choice": ("choice",), "times": ("times",)}


def test_constants_that_were_folded_are_nobodys(build: Any) -> None:
    model = build(
        [("Add", ["a", "a"], ["b"], {}), ("Mul", ["x", "b"], ["y"], {})],
        [("x", FLOAT, [2])],
        [("y", FLOAT, [2])],
        {"a": np.ones(2, np.float32)},
    )
    saved = onnx.ModelProto.FromString(model.SerializeToString())
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    del saved.graph.node[0]
    saved.graph.node[0].name = "fused"
    saved.graph.initializer.append(numpy_helper.from_array(np.full(2, 2, np.float32), "b"))
    assert nodes.stands_for(saved.graph, model.graph) == {"fused": ["n1"]}


def test_real_models_lose_no_node(bench: Any, golden: Callable[[str], Any], tmp_path: Path) -> None:
    case = golden("ultraface_slim320_simplified")
    bench.compile(case.path)
    found = _operators(bench, {"input": case.feed["input"]}, tmp_path)
    named = {name for run in found for name in run.nodes}
    graph = onnx.load(case.path, load_external_data=False).graph
    every = {node.output[0] for node in graph.node}
    assert not any(node.name for node in graph.node), "an exporter that names no node"
    assert named <= every
    # the rest are shapes and reshapes that ONNX Runtime removed
    assert len(named) >= 0.9 * len(every)


def test_quantised_operators_are_told_by_their_names(bench: Any, build: Any) -> None:
    weights = {
        "xs": np.array(0.05, np.float32),
        "ys": np.array(0.1, np.float32),
        "zero": np.array(128, np.uint8),
        "wq": np.ones((4, 3, 1, 1), np.uint8),
    }
    model = build(
        [
            ("QuantizeLinear", ["x", "xs", "zero"], ["xq"], {}),
            ("DequantizeLinear", ["xq", "xs", "zero"], ["xd"], {}),
            ("DequantizeLinear", ["wq", "xs", "zero"], ["wd"], {}),
            ("Conv", ["xd", "wd"], ["c"], {}),
            ("QuantizeLinear", ["c", "ys", "zero"], ["cq"], {}),
            ("DequantizeLinear", ["cq", "ys", "zero"], ["y"], {}),
        ],
        [("x", FLOAT, [1, 3, 8, 8])],
        [("y", FLOAT, [1, 4, 8, 8])],
        weights,
    )
    for node in model.graph.node:
        node.name = f"the {node.output[0]}"
    bench.compile(model)
    saved = onnx.load(bench.payload / "model.onnx").graph
    found = nodes.read(bench.payload)
    told = {node.op_type: found.get(node.name, []) for node in saved.node}
    assert "the c" in told["QLinearConv"]
    every = [name for names in told.values() for name in names]
    assert sorted(every) == sorted(node.name for node in model.graph.node)
