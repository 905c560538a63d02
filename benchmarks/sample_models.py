"""ONNX models of realistic sizes with random weights, for the benchmarks; the same on every call."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class _Graph:
    """Nodes and weights as they are added, one after another."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def weight(self, *shape: int) -> str:
        """Add a weight of He's scale, which keeps activations in range, and return its name."""
        name = f"w{len(self.weights)}"
        scale = math.sqrt(2 / math.prod(shape[1:]))
        values = (self._random.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(self, x: str, channels: tuple[int, int], *, size: int, stride: int = 1) -> str:
        """Add a convolution with bias that keeps the size, or divides it by `stride`."""
        weight = self.weight(channels[1], channels[0], size, size)
        return self.add(
            "Conv",
            *(x, weight, self.weight(channels[1])),
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
        )

    def save(self, path: Path, output: str, *, shape: tuple[int, ...], classes: int) -> Path:
        """Write the model with input `x` and output `y`, and return its path."""
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], classes))],
            self.weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path


def small(folder: Path) -> Path:
    """A perceptron of three layers, as behind a sensor: some microseconds."""
    graph = _Graph()
    x = "x"
    for inner, outer in ((32, 64), (64, 64), (64, 8)):
        x = graph.add("Gemm", x, graph.weight(outer, inner), graph.weight(outer), transB=1)
        x = graph.add("Relu", x) if outer == 64 else graph.add("Softmax", x, axis=-1)
    return graph.save(folder / "small.onnx", x, shape=(1, 32), classes=8)


def large(folder: Path) -> Path:
    """A residual network on 224 by 224 pixels, 3 GFLOP: some ten milliseconds."""
    graph = _Graph()
    x = graph.add("Relu", graph.convolution("x", (3, 64), size=7, stride=2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for _ in range(5):
        y = graph.add("Relu", graph.convolution(x, (64, 64), size=3))
        x = graph.add("Relu", graph.add("Add", x, graph.convolution(y, (64, 64), size=3)))
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    x = graph.add("Gemm", x, graph.weight(100, 64), graph.weight(100), transB=1)
    return graph.save(folder / "large.onnx", x, shape=(1, 3, 224, 224), classes=100)
