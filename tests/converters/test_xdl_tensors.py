"""TensorFlow graphs inside XDL: every operator against what TensorFlow itself gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.xdl import plugin
from deploykit._plugins.converters.xdl.graph_def import read_meta_graph
from deploykit._plugins.converters.xdl.tensor_evaluation import COMPUTE
from deploykit._plugins.converters.xdl.tensor_mapping import OPERATORS

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from tests.converters.xdl_writer import Node, text_graph

GRAPHS = Path(__file__).parents[1] / "fixtures" / "xdl" / "graphs.npz"


def cases() -> dict[str, dict[str, dict[str, Any]]]:
    """Return graph, inputs, variables and outputs of each case that `make_xdl_graphs.py` wrote."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with np.load(GRAPHS) as archive:
        for key in archive.files:
            case, kind, *name = key.split("|")
            parts = found.setdefault(case, {"graph": {}, "in": {}, "var": {}, "out": {}})
            parts[kind]["".join(name)] = archive[key]
    return found


CASES = cases()


def write(
    folder: Path, graph: bytes, inputs: list[str], weights: dict[str, Any], target: str
) -> Path:
    """Write an XDL graph around a TensorFlow graph, and the export of its weights."""
    (folder / "graph.txt").unlink(missing_ok=True)
    names = [*inputs, *weights]
    nodes: list[Node] = [("/GetBatch", "GetBatch", (), {})]
    refs = [f"/GetBatch:{at}" for at in range(len(inputs))]
    for name in weights:
        own = name.removesuffix(":0")
        nodes.append((f"/Pull_{len(nodes)}", "PsPullOp", (), {"var_name": own}))
        refs.append(f"{nodes[-1][0]}:0")
    attrs = {
        "graph_def": graph,
        "input_op_names": ",".join(names),
        "target_op_names": target,
        "gradient_size": 0,
    }
    nodes.append(("/TFBackendOp", "TFBackendOp", refs, attrs))
    (folder / "graph.txt").write_text(text_graph(nodes, {}, [target.split(",")[0]]))
    arrays = {name.removesuffix(":0").replace("/", "$"): one for name, one in weights.items()}
    np.savez(folder / "dense.npz", **arrays)
    return folder / "graph.txt"


def convert(
    path: Path, output: Path, **options: str
) -> tuple[Source, onnxruntime.InferenceSession]:
    source = Source(location=str(path), format="xdl/graph", options=options)
    plugin.convert(ConvertRequest(source=source, output=str(output)))
    return source, onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", CASES)
def test_operators_give_what_tensorflow_gave(case: str, tmp_path: Path) -> None:
    parts = CASES[case]
    feed, weights, expected = parts["in"], parts["var"], parts["out"]
    graph = parts["graph"][""].tobytes()
    path = write(tmp_path, graph, list(feed), weights, next(iter(expected)))
    source, session = convert(path, tmp_path / "o.onnx", outputs=",".join(expected))
    own = {one.name: feed[one.name] for one in session.get_inputs()}
    assert list(own) == list(feed)
    names = [one.name for one in session.get_outputs()]
    assert names == list(expected)
    found = dict(zip(names, session.run(None, own), strict=True))
    defined = plugin.reference(ReferenceRequest(source=source)).run(own)
    wrong = []
    for what, arrays in (("ONNX", found), ("definition", defined)):
        for name, value in expected.items():
            array = arrays[name]
            if array.dtype != value.dtype or array.shape != value.shape:
                wrong.append(f"{name}: {what} gives {array.dtype}{array.shape}")
            elif not np.allclose(array, value, rtol=2e-5, atol=1e-6):
                wrong.append(f"{name}: {what} is off by {np.abs(array - value).max()}")
    assert not wrong


def test_the_cases_cover_the_operators() -> None:
    seen = {"Const", "Switch", "Merge"}
    for parts in CASES.values():
        seen |= {node.op for node in read_meta_graph(parts["graph"][""].tobytes()).nodes.values()}
    # of resource variables, which XDL feeds by their names
    assert set(OPERATORS) - seen == {"ReadVariableOp", "ResourceGather"}
    assert set(OPERATORS) <= set(COMPUTE)


def test_refusals_name_what_and_where(tmp_path: Path) -> None:
    parts = CASES["products"]
    graph = parts["graph"][""].tobytes()
    (target,) = [name for name in parts["out"] if name.startswith("MatMul:")]
    broken = graph.replace(b"\x12\x06MatMul", b"\x12\x06MatSol")
    path = write(tmp_path, broken, list(parts["in"]), parts["var"], target)
    source = Source(location=str(path), format="xdl/graph")
    with pytest.raises(UnsupportedError, match=r"MatSol \(node `MatMul`\)"):
        plugin.inspect(source)
    path = write(tmp_path, graph, list(parts["in"]), {}, target)
    with pytest.raises(SourceError, match="nothing feeds `kernel`"):
        plugin.inspect(source)
    cut = graph[: len(graph) // 2]
    path = write(tmp_path, cut, list(parts["in"]), parts["var"], target)
    with pytest.raises(SourceError, match="damaged"):
        plugin.inspect(Source(location=str(path), format="xdl/graph"))
    path = write(tmp_path, graph, list(parts["in"]), parts["var"], target)
    (tmp_path / "dense.npz").unlink()
    with pytest.raises(SourceError, match=r"neither `dense\.npz` nor `dense\.txt`"):
        plugin.inspect(source)
    for options in ({"sparse": "dense"}, {"output": "x"}, {"outputs": "nothing:0"}):
        with pytest.raises(UsageError):
            plugin.inspect(Source(location=str(path), format="xdl/graph", options=options))


def test_a_branch_that_depends_on_the_data_is_refused(tmp_path: Path) -> None:
    parts = CASES["decided_branch"]
    graph = parts["graph"][""].tobytes()
    target = list(parts["out"])[1]
    # the condition becomes an input
    names = [*parts["in"], "PlaceholderWithDefault:0"]
    path = write(tmp_path, graph, names, parts["var"], target)
    with pytest.raises(UnsupportedError, match="branches on what is computed"):
        plugin.inspect(Source(location=str(path), format="xdl/graph"))
