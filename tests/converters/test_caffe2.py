"""Caffe2 nets: real ones against golden outputs, every operator by definition, damage refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.caffe2 import plugin, reading
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from deploykit.tensor_spec import parse_input


def run(path: Path, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


@pytest.mark.parametrize(
    "name", ["derived_ultraface_slim320", "style_transfer_animals", "style_transfer_mosaic"]
)
def test_a_real_net_gives_what_caffe2_gave(name: str, shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "caffe2" / name
    conversion = dk.convert(folder, tmp_path / "out.onnx")
    assert conversion.verified
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    golden = np.load(folder / "golden.npz")
    found = run(tmp_path / "out.onnx", {n: golden[f"in_{k}"] for k, n in names["in"].items()})
    order = [spec.name.removesuffix("_output") for spec in conversion.signature.outputs]
    assert sorted(order) == sorted(names["out"].values())
    for key, output in names["out"].items():
        value = found[order.index(output)]
        expected = golden[f"out_{key}"]
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    # pictures come in and go out by operators of their own, one of which adds noise
    assert bool(conversion.repairs) == name.startswith("style")


RANDOM = np.random.default_rng(11)


def w(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32) / 2


def argument(name: str, value: Any) -> str:
    if isinstance(value, str):
        body = f's: "{value}"'
    elif isinstance(value, float):
        body = f"f: {value!r}"
    elif isinstance(value, int):
        body = f"i: {value}"
    else:
        kind = "floats" if any(isinstance(one, float) for one in value) else "ints"
        body = " ".join(f"{kind}: {one!r}" for one in value)
    return f'arg {{ name: "{name}" {body} }}'


def write(
    folder: Path, kind: str, args: dict[str, Any], weights: list[Any], inputs: int, outputs: int = 1
) -> Path:
    """Write both nets as text, as Caffe2's `.pbtxt` is."""
    names = [f"x{n}" for n in range(inputs)] + [f"w{n}" for n in range(len(weights))]
    made = [f"y{n}" for n in range(outputs)]
    lines = [f'input: "{name}"' for name in names] + [f'output: "{name}"' for name in made]
    lines += [argument(name, value) for name, value in args.items()]
    ends = [f'external_input: "{name}"' for name in names]
    ends += [f'external_output: "{name}"' for name in made]
    net = f'name: "net" op {{ {" ".join(lines)} type: "{kind}" }} {" ".join(ends)}'
    (folder / "predict_net.pbtxt").write_text(net)
    fills = []
    for number, value in enumerate(weights):
        fill = "GivenTensorFill" if value.dtype == np.float32 else "GivenTensorInt64Fill"
        shape = argument("shape", list(value.shape))
        values = argument("values", value.reshape(-1).tolist())
        fills.append(f'op {{ output: "w{number}" type: "{fill}" {shape} {values} }}')
    (folder / "init_net.pbtxt").write_text('name: "init" ' + "\n".join(fills))
    return folder / "predict_net.pbtxt"


Shapes = list[tuple[int, ...]]
OPERATORS: dict[str, tuple[str, dict[str, Any], list[Any], Shapes]] = {
    "conv": (
        "Conv",
        {
            "kernel_h": 3,
            "kernel_w": 2,
            "stride": 2,
            "pad_t": 1,
            "pad_l": 2,
            "pad_b": 0,
            "pad_r": 1,
            "group": 2,
        },
        [w(6, 2, 3, 2), w(6)],
        [(2, 4, 9, 8)],
    ),
    "conv lists": (
        "Conv",
        {"kernels": [3, 3], "strides": [1, 2], "pads": [1, 0, 2, 1], "dilations": [2, 1]},
        [w(5, 3, 3, 3), w(5)],
        [(2, 3, 9, 8)],
    ),
    "conv nhwc": (
        "Conv",
        {"kernel": 3, "pad": 1, "order": "NHWC"},
        [w(5, 3, 3, 2), w(5)],
        [(2, 6, 7, 2)],
    ),
    "conv transposed": (
        "ConvTranspose",
        {"kernel": 3, "stride": 2, "pad": 1, "adj": 1},
        [w(4, 5, 3, 3), w(5)],
        [(2, 4, 5, 6)],
    ),
    "max pool": ("MaxPool", {"kernel": 3, "stride": 2, "pad": 1}, [], [(2, 3, 8, 7)]),
    "max pool rounded up": (
        "MaxPool",
        {"kernel": 3, "stride": 2, "legacy_pad": 3},
        [],
        [(2, 3, 8, 7)],
    ),
    "conv same": (
        "Conv",
        {"kernel_h": 3, "kernel_w": 4, "stride": 2, "legacy_pad": 2},
        [w(5, 3, 3, 4), w(5)],
        [(2, 3, 8, 7)],
    ),
    "conv same dilated": (
        "Conv",
        {"kernel": 2, "dilation": 3, "legacy_pad": 2},
        [w(5, 3, 2, 2), w(5)],
        [(2, 3, 8, 7)],
    ),
    "conv valid": (
        "Conv",
        {"kernel": 3, "pad": 1, "legacy_pad": 1},
        [w(5, 3, 3, 3), w(5)],
        [(2, 3, 8, 7)],
    ),
    "max pool same": ("MaxPool", {"kernel": 3, "stride": 2, "legacy_pad": 2}, [], [(2, 3, 8, 7)]),
    "average pool same": (
        "AveragePool",
        {"kernel": 2, "stride": 2, "legacy_pad": 2},
        [],
        [(2, 3, 8, 7)],
    ),
    "max pool nhwc": ("MaxPool", {"kernel": 2, "stride": 2, "order": "NHWC"}, [], [(2, 8, 6, 3)]),
    "average pool": ("AveragePool", {"kernel": 3, "stride": 2, "pad": 1}, [], [(2, 3, 8, 7)]),
    "global pool": ("AveragePool", {"global_pooling": 1}, [], [(2, 3, 8, 7)]),
    "fc": ("FC", {}, [w(5, 12), w(5)], [(2, 3, 4)]),
    "fc transposed": ("FCTransposed", {}, [w(12, 5), w(5)], [(2, 12)]),
    "spatial bn": (
        "SpatialBN",
        {"is_test": 1, "epsilon": 0.01},
        [w(3), w(3), w(3), np.abs(w(3))],
        [(2, 3, 4, 5)],
    ),
    "instance norm": ("InstanceNorm", {"epsilon": 0.01}, [w(3), w(3)], [(2, 3, 4, 5)]),
    "lrn": ("LRN", {"size": 3, "alpha": 0.2, "beta": 0.75, "bias": 2.0}, [], [(2, 5, 3, 3)]),
    "prelu": ("PRelu", {}, [w(3)], [(2, 3, 4, 5)]),
    **{
        kind: (kind, {}, [], [(2, 5)])
        for kind in (
            "Relu",
            "Sigmoid",
            "Tanh",
            "Softplus",
            "Softsign",
            "Exp",
            "Abs",
            "Negative",
            "LeakyRelu",
            "Elu",
            "Copy",
        )
    },
    "clip": ("Clip", {"min": -0.5, "max": 0.25}, [], [(2, 5)]),
    "add": ("Add", {}, [], [(2, 3, 4), (2, 3, 4)]),
    "mul broadcast": ("Mul", {"broadcast": 1}, [w(4)], [(2, 3, 4)]),
    "add along an axis": ("Add", {"broadcast": 1, "axis": 1}, [w(3)], [(2, 3, 4, 5)]),
    "sum": ("Sum", {}, [], [(2, 3), (2, 3), (2, 3)]),
    "concat": ("Concat", {"axis": 2}, [], [(2, 3, 4), (2, 3, 5)]),
    "reshape": ("Reshape", {"shape": [0, -1, 2]}, [], [(2, 3, 4)]),
    "reshape by a blob": ("Reshape", {}, [np.array([2, -1], np.int64)], [(2, 3, 4)]),
    "transpose": ("Transpose", {"axes": [0, 2, 1]}, [], [(2, 3, 4)]),
    "nhwc to nchw": ("NHWC2NCHW", {}, [], [(2, 3, 4, 5)]),
    "softmax": ("Softmax", {"axis": 1}, [], [(2, 3, 4)]),
    "softmax last": ("Softmax", {"axis": 2}, [], [(2, 3, 4)]),
    "flatten": ("Flatten", {}, [], [(2, 3, 4)]),
    "expand": ("ExpandDims", {"dims": [1]}, [], [(2, 3)]),
    "pad": (
        "PadImage",
        {"pad_t": 1, "pad_l": 2, "pad_b": 0, "pad_r": 1, "mode": "reflect"},
        [],
        [(2, 3, 4, 5)],
    ),
    "pad constant": ("PadImage", {"pad": 1, "value": 0.5}, [], [(2, 3, 4, 5)]),
    "resize": ("ResizeNearest", {"height_scale": 2.0, "width_scale": 3.0}, [], [(2, 3, 4, 5)]),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_an_operator_agrees_with_its_definition(case: str, tmp_path: Path) -> None:
    kind, args, weights, shapes = OPERATORS[case]
    path = write(tmp_path, kind, args, weights, len(shapes))
    specs = tuple(
        parse_input(f"x{n}:float32[batch,{','.join(map(str, shape[1:]))}]")
        for n, shape in enumerate(shapes)
    )
    source = Source(location=str(path), format="caffe2/net", inputs=specs)
    plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "o.onnx")))
    feed = {
        f"x{n}": RANDOM.standard_normal(shape).astype(np.float32) for n, shape in enumerate(shapes)
    }
    expected = plugin.reference(ReferenceRequest(source=source)).run(feed)
    (found,) = run(tmp_path / "o.onnx", feed)
    assert found.shape == expected["y0"].shape
    np.testing.assert_allclose(found, expected["y0"], rtol=2e-4, atol=2e-5)


def test_names_that_are_reused_are_values_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "init_net.pbtxt").write_text(
        'op { output: "w" type: "GivenTensorFill" arg { name: "shape" ints: 1 } '
        'arg { name: "values" floats: 3 } }'
    )
    path = tmp_path / "predict_net.pbtxt"
    path.write_text(
        'op { input: "x" input: "w" output: "x" type: "Mul" arg { name: "broadcast" i: 1 } } '
        'op { input: "x" output: "y" type: "Copy" } '
        'op { input: "x" output: "x" type: "Negative" } '
        'external_input: "x" external_output: "x" external_output: "y"'
    )
    source = Source(
        location=str(path), format="caffe2/net", inputs=(parse_input("x:float32[batch]"),)
    )
    result = plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "o.onnx")))
    assert [spec.name for spec in result.signature.outputs] == ["x_output", "y"]
    x, y = run(tmp_path / "o.onnx", {"x": np.array([1, 2], np.float32)})
    np.testing.assert_array_equal(x, [-3, -6])
    np.testing.assert_array_equal(y, [3, 6])


def test_refusals_name_what_and_where(tmp_path: Path) -> None:
    path = write(tmp_path, "BatchPermutation", {}, [], 1)
    with pytest.raises(UnsupportedError, match=r"BatchPermutation \(makes `y0`\)"):
        plugin.inspect(Source(location=str(path), format="caffe2/net"))
    path = write(tmp_path, "Relu", {}, [], 1)
    with pytest.raises(UsageError, match="x0") as caught:
        plugin.inspect(Source(location=str(path), format="caffe2/net"))
    assert "--input" in caught.value.hint
    (tmp_path / "init_net.pbtxt").write_text('op { output: "w0" type: "XavierFill" }')
    with pytest.raises(UnsupportedError, match="XavierFill"):
        plugin.inspect(Source(location=str(path), format="caffe2/net"))
    (tmp_path / "init_net.pbtxt").unlink()
    with pytest.raises(SourceError, match="init_net"):
        plugin.inspect(Source(location=str(path), format="caffe2/net"))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.booleans(),
    st.integers(0, 1 << 30),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_file_is_an_error_with_a_name(
    tmp_path: Path, of_init: bool, cut: int, changes: list[tuple[int, int]]
) -> None:
    path = write(tmp_path, "Conv", {"kernel": 3}, [w(2, 3, 3, 3), w(2)], 1)
    damaged = tmp_path / ("init_net.pbtxt" if of_init else "predict_net.pbtxt")
    data = bytearray(damaged.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    damaged.write_bytes(bytes(data[: 1 + cut % len(data)]) if cut % 3 == 0 else bytes(data))
    try:
        plugin.inspect(Source(location=str(path), format="caffe2/net"))
    except DeploykitError:
        return


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_net_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pb"
    path.write_bytes(data or b"\0")
    try:
        reading.read(path)
    except SourceError:
        return
