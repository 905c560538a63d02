"""TVM as tuned by deploykit against ONNX Runtime: convolutions and a transformer, random weights.

    python benchmarks/tvm_tuning.py [--tune SECONDS] [--seconds 20] [--threads N] [--json]
    python benchmarks/tvm_tuning.py --starter [--tune SECONDS]

The models are MobileNetV2 at 224x224 and a transformer encoder (4 layers of width 256, 64 tokens),
their real layers with random weights: what is measured is arithmetic. Both run side by side in
`deploykit.profile`, in interleaved rounds; the ratio is TVM's latency by ONNX Runtime's, with its
confidence interval. `--starter` writes the best order of each kernel, as found on this machine, to
the records that come with deploykit for processors of its class.

Goal: a ratio of at most 1.5 after 20 minutes of tuning on two cores.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

# the checkout's own deploykit, installed or not
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import deploykit
from deploykit import plugins
from deploykit.machine import fingerprint, usable_cores
from deploykit.options import Checks, Conditions
from deploykit.profiling import Load
from deploykit.protocol import to_json

FLOAT = TensorProto.FLOAT
MOBILENET = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
"""Factor of expansion, channels, repetitions, stride: table 2 of the MobileNetV2 paper."""


class Network:
    """A graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, value: Any) -> str:
        """Add a constant and return its name."""
        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        name = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def normal(self, *shape: int, scale: float) -> str:
        """Add a constant of normal values."""
        return self.constant(self.random.normal(0, scale, shape).astype(np.float32))

    def model(self, inputs: list[int], outputs: list[int]) -> onnx.ModelProto:
        """Return the model from `x` to the last node's output."""
        last = self.nodes[-1].output[0]
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", FLOAT, inputs)],
            [helper.make_tensor_value_info(last, FLOAT, outputs)],
            self.weights,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made)
        return made


def mobilenet() -> onnx.ModelProto:
    """Return MobileNetV2 for images of 224 x 224, batch normalisation folded into the weights."""
    net = Network()

    def convolution(
        x: str, inputs: int, outputs: int, *, size: int = 1, stride: int = 1, groups: int = 1
    ) -> str:
        fan_in = inputs // groups * size * size
        weight = net.normal(outputs, inputs // groups, size, size, scale=(2 / fan_in) ** 0.5)
        return net.add(
            "Conv",
            x,
            weight,
            net.normal(outputs, scale=0.1),
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
            group=groups,
        )

    def clipped(x: str) -> str:
        return net.add("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6)))

    x, width = clipped(convolution("x", 3, 32, size=3, stride=2)), 32
    for factor, channels, repetitions, first_stride in MOBILENET:
        for number in range(repetitions):
            stride = first_stride if number == 0 else 1
            wide = width * factor
            y = clipped(convolution(x, width, wide)) if factor > 1 else x
            y = clipped(convolution(y, wide, wide, size=3, stride=stride, groups=wide))
            y = convolution(y, wide, channels)
            x = net.add("Add", x, y) if stride == 1 and width == channels else y
            width = channels
    x = clipped(convolution(x, width, 1280))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    net.add("Gemm", x, net.normal(1280, 1000, scale=0.02), net.normal(1000, scale=0.02))
    return net.model([1, 3, 224, 224], [1, 1000])


def transformer(
    layers: int = 4, width: int = 256, heads: int = 4, tokens: int = 64
) -> onnx.ModelProto:
    """Return a transformer encoder on `tokens` embeddings of `width` values."""
    net = Network()

    def dense(x: str, inputs: int, outputs: int) -> str:
        y = net.add("MatMul", x, net.normal(inputs, outputs, scale=inputs**-0.5))
        return net.add("Add", y, net.normal(outputs, scale=0.02))

    def normalised(x: str) -> str:
        scale = net.constant(np.ones(width, np.float32))
        shift = net.constant(np.zeros(width, np.float32))
        return net.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    split = net.constant(np.array([1, tokens, heads, width // heads]))
    joined = net.constant(np.array([1, tokens, width]))

    def by_head(x: str, order: list[int]) -> str:
        return net.add("Transpose", net.add("Reshape", x, split), perm=order)

    x = "x"
    for _ in range(layers):
        query, value = (by_head(dense(x, width, width), [0, 2, 1, 3]) for _ in range(2))
        key = by_head(dense(x, width, width), [0, 2, 3, 1])
        scores = net.add("MatMul", query, key)
        scores = net.add("Div", scores, net.constant(np.float32((width // heads) ** 0.5)))
        mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), value)
        mixed = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = normalised(net.add("Add", x, dense(mixed, width, width)))
        wide = net.add("Relu", dense(x, width, 4 * width))
        x = normalised(net.add("Add", x, dense(wide, 4 * width, width)))
    return net.model([1, tokens, width], [1, tokens, width])


MODELS = {"mobilenetv2": mobilenet, "transformer": transformer}


def compare(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return both latencies and their ratio."""
    path = folder / f"{name}.onnx"
    onnx.save(MODELS[name](), path)
    report = deploykit.profile(
        path,
        ["onnxruntime:cpu", "tvm:cpu"],
        settings={"tvm.tune": str(arguments.tune)},
        load=Load(duration_s=arguments.seconds),
        checks=Checks(),
        conditions=Conditions(threads=arguments.threads),
    )
    rows = {each.target: each for each in report.measurements}
    tvm = rows["tvm"]
    return {
        "model": name,
        "outcome": tvm.outcome,
        "detail": tvm.detail,
        "notes": list(tvm.notes),
        "onnxruntime_p50_ms": rows["onnxruntime"].latency_p50_ms,
        "tvm_p50_ms": tvm.latency_p50_ms,
        "ratio": to_json(tvm.ratio),
    }


def write_starter(arguments: argparse.Namespace) -> Path:
    """Tune the kernels of the models and write the best of each to the plugin's records."""
    import importlib

    plugin = plugins.target("tvm")
    package = plugin.module.rpartition(".")[0]
    importlib.import_module(plugin.module)
    records = importlib.import_module(f"{package}.records")
    machine = importlib.import_module(f"{package}.machine")
    with tempfile.TemporaryDirectory(prefix="deploykit-tuning-") as place:
        for name, make in MODELS.items():
            path = Path(place) / f"{name}.onnx"
            onnx.save(make(), path)
            deploykit.compile(
                path,
                ["tvm:cpu"],
                Path(place) / "bundles",
                settings={"tvm.tune": str(arguments.tune)},
                conditions=Conditions(threads=arguments.threads),
            )
    processor = machine.this_one(arguments.threads)
    path = records.STARTERS / f"{records.kind_of(processor)}.json.xz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lzma.compress(json.dumps(records.best_of(processor)).encode(), preset=9))
    return Path(path)


def main() -> None:
    """Compare and print, or write the starter records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tune", type=int, default=60, metavar="SECONDS")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring each model")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--model", choices=list(MODELS), help="only this one")
    parser.add_argument("--starter", action="store_true", help="write the records instead")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.starter:
        path = write_starter(arguments)
        print(f"{path.name}: {path.stat().st_size} bytes")
        return
    names = [arguments.model] if arguments.model else list(MODELS)
    with tempfile.TemporaryDirectory(prefix="deploykit-tuning-") as place:
        results = [compare(name, Path(place), arguments) for name in names]
    if arguments.json:
        print(json.dumps({"machine": to_json(fingerprint()), "results": results}, indent=1))
        return
    for result in results:
        ratio = result["ratio"]
        shown = (
            f"ratio {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            if ratio
            else f"{result['outcome']}: {result['detail']}"
        )
        print(
            f"{result['model']}: ONNX Runtime {result['onnxruntime_p50_ms']} ms, "
            f"TVM {result['tvm_p50_ms']} ms, {shown}"
        )
        for note in result["notes"]:
            print(f"  {note}")


if __name__ == "__main__":
    main()
