"""Small models, and one model through the worker of the target litert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from deploykit.onnx_file import signature_of
from deploykit.protocol import CompileRequest, CompileResult, LoadRequest
from deploykit.steps import Worker

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]


class Litert:
    """`compile` and `run` in the target's own worker: another process, another environment."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        self.worker = worker
        self.folder = folder
        self.count = 0
        self.request = LoadRequest(
            payload="", signature=signature_of(onnx.ModelProto()), device="cpu"
        )

    def compile(self, model: onnx.ModelProto | Path, **more: Any) -> CompileResult:
        """Compile a model, whose file is gone before the payload is loaded."""
        self.count += 1
        payload = self.folder / str(self.count)
        payload.mkdir()
        made = not isinstance(model, Path)
        path = self.folder / f"{self.count}.onnx" if isinstance(model, onnx.ModelProto) else model
        if isinstance(model, onnx.ModelProto):
            onnx.save(model, path)
        loaded = onnx.load(path, load_external_data=False)
        request = CompileRequest(
            model=str(path),
            payload=str(payload),
            signature=signature_of(loaded),
            device="cpu",
            threads=2,
            **more,
        )
        result = self.worker.call("compile", request, CompileResult)
        if made:
            path.unlink()
        self.request = LoadRequest(
            payload=str(payload),
            signature=result.signature,
            device="cpu",
            precision=request.precision,
            threads=2,
            settings=result.settings,
        )
        return result

    def run(self, *feeds: Feed) -> list[Feed]:
        """Load what was compiled last, and run it on each of the inputs."""
        session = self.worker.open(self.request)
        try:
            return [session.run(feed) for feed in feeds]
        finally:
            session.close()


def model_of(
    nodes: Nodes,
    feed: Feed,
    outputs: list[str],
    weights: Feed | None = None,
    *,
    opset: int = 17,
    open_axes: dict[tuple[str, int], str] | None = None,
) -> onnx.ModelProto:
    """Return a model that takes `feed`; `open_axes` name those of its axes that are dynamic."""
    inputs = []
    for name, array in feed.items():
        sizes = [(open_axes or {}).get((name, at), size) for at, size in enumerate(array.shape)]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(name, kind, sizes))
    graph = helper.make_graph(
        [helper.make_node(kind, ins, outs, **more) for kind, ins, outs, more in nodes],
        "graph",
        inputs,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def assert_close(found: Feed, wanted: list[Array], *, tolerance: float = 1e-5) -> None:
    """Values, shapes and dtypes, as near as float32 allows."""
    for (name, value), other in zip(found.items(), wanted, strict=True):
        expected = np.asarray(other)
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
        scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
        np.testing.assert_allclose(
            value, expected, rtol=tolerance, atol=tolerance * scale, err_msg=name
        )


_random = np.random.default_rng(3)


def normal(*shape: int) -> Array:
    return _random.normal(0, 1, shape).astype(np.float32)


def by_onnxruntime(model: onnx.ModelProto | Path, feed: Feed) -> list[Array]:
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    found: list[Array] = onnxruntime.InferenceSession(content).run(None, feed)
    return found


def network(*, batch: str | None) -> tuple[onnx.ModelProto, Feed]:
    """Convolutions, a pool, a flattening and a product."""
    nodes: Nodes = [
        ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "w2"], ["c2"], {"group": 8, "pads": [1, 1, 1, 1]}),
        ("Sigmoid", ["c2"], ["s2"], {}),
        ("Mul", ["c2", "s2"], ["m2"], {}),
        ("MaxPool", ["m2"], ["p2"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["p2"], ["f"], {}),
        ("Gemm", ["f", "w3"], ["y"], {}),
    ]
    weights = {"w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(8, 1, 3, 3)}
    weights["w3"] = normal(8 * 4 * 4, 5)
    feed = {"x": normal(2, 3, 16, 16)}
    axes = {("x", 0): batch} if batch else None
    return model_of(nodes, feed, ["y"], weights, open_axes=axes), feed
