"""Small XDL models: lookups before a TensorFlow graph, and MXNet networks as XDL's scripts build them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from deploykit._plugins.converters.xdl import checkpoint

from tests.converters import xdl_writer as xdl
from tests.converters.test_xdl_tensors import CASES

RANDOM = np.random.default_rng(3)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def graph_nodes(pool: dict[str, Any], names: list[str], width: int) -> list[xdl.Node]:
    """Return an XDL graph: lookups, pooled, and a dense network that adds two of them."""
    parts = CASES["arithmetic"]
    declared = {"var_name": "items", "dtype": "type:float32", "shape": (1 << 40, width)}
    nodes: list[xdl.Node] = [
        ("/GetBatch", "GetBatch", (), {}),
        ("/Register", "PsRegisterVariableOp", (), declared),
        xdl.constant("/None", np.empty(0, np.int32)),
    ]
    refs = []
    for at, name in enumerate(names):
        ids, values, ends = (f"/GetBatch:{3 * at + one}" for one in range(3))
        nodes += [
            (f"/Unique_{at}", "Unique", (ids,), {"dtype": "type:int64", "itype": "type:int32"}),
            (f"/Pull_{at}", "PsSparsePullOp", (f"/Unique_{at}:0",), {"var_name": name}),
            (
                f"/Pool_{at}",
                pool.get("op", "KSum"),
                (f"/Pull_{at}:0", f"/Unique_{at}:1", values, ends, "/None:0"),
                {key: value for key, value in pool.items() if key != "op"},
            ),
        ]
        refs.append(f"/Pool_{at}:0")
    attrs = {
        "graph_def": parts["graph"][""].tobytes(),
        "input_op_names": ",".join(parts["in"]),
        "target_op_names": next(iter(parts["out"])),
        "gradient_size": 0,
    }
    return [*nodes, ("/TFBackendOp", "TFBackendOp", refs, attrs)]


def sparse_model(
    folder: Path,
    keys: Any,
    pool: dict[str, Any] | None = None,
    *,
    width: int = 5,
    binary: bool = False,
) -> tuple[Path, Any]:
    """Write a model with one table that two features share; return its graph and the rows."""
    rows = RANDOM.standard_normal((len(keys), width)).astype(np.float32)
    nodes = graph_nodes(pool or {}, ["items", "items"], width)
    tags = {
        f"/GetBatch:{3 * at + place}": f"{name}.{kind}"
        for at, name in enumerate(("mine", "theirs"))
        for place, kind in enumerate(("ids", "values", "segments"))
    }
    path = folder / ("graph.pb" if binary else "graph.txt")
    if binary:
        path.write_bytes(xdl.binary_graph(nodes, tags, ["/TFBackendOp:0"]))
    else:
        path.write_text(xdl.text_graph(nodes, tags, ["/TFBackendOp:0"]))
    np.savez(folder / "dense.npz", unused=np.zeros(1))
    (folder / "sparse.txt").write_text("items\n")
    lines = [
        ",".join([*map(str, np.atleast_1d(key)), *map(repr, row.tolist())])
        for key, row in zip(keys, rows, strict=True)
    ]
    (folder / "items").write_text("\n".join(lines) + "\n")
    return path, rows


CONTIGUOUS = np.arange(100, 117)
SCATTERED = np.array([7, -9223372036854775808, 9223372036854775807, 0, -5, 1 << 40, 12, 13, 99])
PAIRS = np.array([[0, 8], [0, -8], [1, 8], [-3, 5], [1 << 62, 1 << 62], [1, 7], [2, 0]])
KEYS = {
    "contiguous": CONTIGUOUS,
    "scattered": SCATTERED,
    "pairs": PAIRS,
    "one": SCATTERED[:1],
    "two": SCATTERED[:2],
    **{f"{count} of them": RANDOM.permutation(1 << 20)[:count] for count in (3, 15, 16, 17, 255)},
}
POOLS: dict[str, dict[str, Any]] = {
    "sum": {},
    "mean": {"average": True},
    "tile": {"op": "Tile", "length": 5, "reverse": False},
}


def by_hand(
    keys: Any, rows: Any, ids: Any, values: Any, lengths: list[int], pool: dict[str, Any]
) -> Any:
    """Compute the pooled vectors of one feature in plain Python."""
    known = {tuple(np.atleast_1d(key).tolist()): row for key, row in zip(keys, rows, strict=True)}
    width = rows.shape[1]
    zero = np.zeros(width)
    vectors = [
        known.get(tuple(np.atleast_1d(one).tolist()), zero) * value
        for one, value in zip(ids, values, strict=True)
    ]
    found, at = [], 0
    for length in lengths:
        own = vectors[at : at + length]
        at += length
        if pool.get("op") == "Tile":
            flat = np.concatenate([*own, np.zeros(5)])[: pool["length"]]
            found.append(flat)
        else:
            total = sum(own, zero)
            found.append(total / len(own) if pool.get("average") and own else total)
    return np.stack(found)


def variable(name: str, *shape: int, dtype: int = 0) -> dict[str, Any]:
    attrs = {"__create_by_xdl__": "True", "__dtype__": str(dtype), "__shape__": str(list(shape))}
    return {"op": "null", "name": name, "attrs": attrs, "inputs": []}


class Symbol:
    """A symbol in the making; operators are called by the number of their node."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []

    def add(self, op: str, name: str, *inputs: int, **attrs: Any) -> int:
        given = {key: str(value) for key, value in attrs.items()}
        refs = [[at, 0, 0] for at in inputs]
        self.nodes.append({"op": op, "name": name, "attrs": given, "inputs": refs})
        return len(self.nodes) - 1

    def json(self, *heads: int) -> str:
        return json.dumps(
            {"nodes": self.nodes, "arg_nodes": [], "heads": [[at, 0, 0] for at in heads]}
        )


def attention_symbol() -> str:
    """As TDM's training script builds it: attention over a user's items, with the batch baked in."""
    net = Symbol()
    net.nodes += [variable(name, 30, 4) for name in ("items", "items_0", "node")]
    net.nodes += [variable("label", 30, 2)]
    joined = net.add("Concat", "joined", 0, 1, num_args=2)
    users = net.add("Reshape", "users", joined, shape=(30, 2, 4))
    node = net.add("Reshape", "one", 2, shape=(30, 1, 4))
    node = net.add("broadcast_to", "wide", node, shape=(0, 2, 0))
    product = net.add("elemwise_mul", "product", users, node)
    both = net.add("Concat", "both", users, product, node, dim=2)
    weight = net.add("null", "w")
    wide = net.add("broadcast_to", "w_wide", weight, shape=(30, 0, 0))
    score = net.add("batch_dot", "score", both, wide)
    score = net.add("broadcast_to", "score_wide", score, shape=(0, 0, 4))
    kept = net.add("Reshape", "kept", users, shape=(30, -1, 4))
    summed = net.add("sum_axis", "summed", net.add("elemwise_mul", "weighed", kept, score), axis=1)
    out = net.add("softmax", "prop", summed, axis=1)
    loss = net.add("MakeLoss", "loss", net.add("elemwise_mul", "error", out, 3))
    prop = net.add("BlockGrad", "prediction", out)
    target = net.add("BlockGrad", "target", 3)
    return net.json(loss, prop, target)


def symbol_model(folder: Path, symbol: str, tags: dict[str, str]) -> tuple[Path, Any]:
    """Write a graph whose network is `attention_symbol`, with vectors from outside, and its weight."""
    refs = ["/GetBatch:0", "/GetBatch:1", "/GetBatch:2", "/GetBatch:3", "/Pull:0"]
    attrs = {"graph_def": symbol, "var_name_str": "items,items_0,node,label,w", "is_training": True}
    nodes: list[xdl.Node] = [
        ("/GetBatch", "GetBatch", (), {}),
        ("/Pull", "PsPullOp", (), {"var_name": "w"}),
        ("/MxnetBackendOp", "MxnetBackendOp", refs, attrs),
    ]
    weight = RANDOM.standard_normal((1, 12, 1)).astype(np.float32)
    saved = folder / "saved"
    if not saved.exists():
        xdl.checkpoint(saved, {"w": (0, weight.shape, [xdl.part(weight)])})
    (folder / "graph.txt").write_text(xdl.text_graph(nodes, tags, []))
    return folder / "graph.txt", checkpoint.read(saved).dense("w")
