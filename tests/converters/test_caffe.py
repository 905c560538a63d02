"""Caffe networks: real ones against golden outputs, every layer by definition, damage refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.caffe import plugin, reading
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source


def run(path: Path, feed: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("name", ["mtcnn_det1", "mtcnn_det2", "ultraface_slim320"])
def test_a_real_network_gives_the_golden_outputs(
    name: str, shared_models: Path, tmp_path: Path
) -> None:
    folder = shared_models / "caffe" / name
    conversion = dk.convert(folder, tmp_path / "out.onnx")
    assert conversion.verified
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    golden = np.load(folder / "golden.npz")
    found = run(tmp_path / "out.onnx", {n: golden[f"in_{k}"] for k, n in names["in"].items()})
    assert set(found) == set(names["out"].values())
    for key, output in names["out"].items():
        np.testing.assert_allclose(found[output], golden[f"out_{key}"], rtol=1e-3, atol=1e-5)


RANDOM = np.random.default_rng(5)


def w(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32) / 2


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob(array: Any, *, old: bool) -> bytes:
    data = field(5, array.tobytes())
    if old:  # four sizes, filled up with ones in front
        sizes = [1] * (4 - array.ndim) + list(array.shape)
        return b"".join(varint(at + 1 << 3) + varint(n) for at, n in enumerate(sizes)) + data
    return field(7, field(1, b"".join(varint(n) for n in array.shape))) + data


def write(
    folder: Path, layer: str, blobs: list[Any], inputs: list[tuple[int, ...]], *, old: bool = False
) -> Path:
    heads = "".join(
        f'input: "x{at}" input_shape {{ {" ".join(f"dim: {n}" for n in shape)} }}\n'
        for at, shape in enumerate(inputs)
    )
    bottoms = " ".join(f'bottom: "x{at}"' for at in range(len(inputs)))
    text = f'name: "net"\n{heads}layer {{ name: "one" {bottoms} {layer} }}'
    if old:
        text = text.replace("layer {", "layers {")
    (folder / "net.prototxt").write_text(text)
    stored = b"".join(field(6 if old else 7, blob(one, old=old)) for one in blobs)
    # as Caffe writes it: the network's name, then for each layer its name and type
    name = (
        field(4, b"one") + bytes([5 << 3, 14]) if old else field(1, b"one") + field(2, b"Sigmoid")
    )
    (folder / "net.caffemodel").write_bytes(
        field(1, b"net") + field(2 if old else 100, name + stored)
    )
    return folder / "net.caffemodel"


def simple(kind: str, settings: str = "", tops: tuple[str, ...] = ("y",)) -> str:
    return f'type: "{kind}" {" ".join(f"top: {json.dumps(top)}" for top in tops)} {settings}'


LAYERS: dict[str, tuple[str, list[Any], list[tuple[int, ...]]]] = {
    "convolution": (
        simple(
            "Convolution",
            "convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 pad: 2 "
            "dilation: 2 group: 2 }",
        ),
        [w(6, 2, 3, 2), w(6)],
        [(2, 4, 9, 8)],
    ),
    "mvn": (simple("MVN"), [], [(2, 3, 4, 5)]),
    "mvn across": (
        simple("MVN", "mvn_param { across_channels: true normalize_variance: false }"),
        [],
        [(2, 3, 4, 5)],
    ),
    "argmax": (simple("ArgMax", "argmax_param { axis: 1 }"), [], [(2, 3, 4, 5)]),
    "tile": (simple("Tile", "tile_param { axis: 1 tiles: 2 }"), [], [(2, 3, 4, 5)]),
    "threshold": (simple("Threshold", "threshold_param { threshold: 0.1 }"), [], [(2, 3, 4)]),
    **{
        f"reduction {kind}": (
            simple("Reduction", f"reduction_param {{ operation: {kind} axis: 2 coeff: 2 }}"),
            [],
            [(2, 3, 4, 5)],
        )
        for kind in ("SUM", "ASUM", "SUMSQ", "MEAN")
    },
    "interp": (simple("Interp", "interp_param { height: 8 width: 9 }"), [], [(2, 3, 4, 5)]),
    "interp zoom": (simple("Interp", "interp_param { zoom_factor: 2 }"), [], [(2, 3, 4, 5)]),
    "interp shrink": (simple("Interp", "interp_param { shrink_factor: 2 }"), [], [(2, 3, 5, 7)]),
    "inner product within": (
        simple("InnerProduct", "inner_product_param { num_output: 5 axis: 2 }"),
        [w(5, 20), w(5)],
        [(2, 3, 4, 5)],
    ),
    "depthwise": (
        simple(
            "ConvolutionDepthwise",
            "convolution_param { num_output: 4 kernel_size: 3 bias_term: false }",
        ),
        [w(4, 1, 3, 3)],
        [(2, 4, 6, 5)],
    ),
    "deconvolution": (
        simple(
            "Deconvolution",
            "convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 2 }",
        ),
        [w(4, 2, 4, 4), w(4)],
        [(2, 4, 5, 6)],
    ),
    **{
        f"pooling {kind} {size} {stride} {pad} {more}": (
            simple(
                "Pooling",
                f"pooling_param {{ pool: {kind} kernel_size: {size} stride: {stride} pad: {pad} {more} }}",
            ),
            [],
            [(2, 3, height, 7)],
        )
        for kind in ("MAX", "AVE")
        for size, stride, pad, height in ((3, 2, 0, 8), (3, 2, 1, 8), (2, 2, 1, 7), (3, 3, 1, 9))
        for more in ("", "round_mode: FLOOR")
    },
    "global pooling": (
        simple("Pooling", "pooling_param { pool: AVE global_pooling: true }"),
        [],
        [(2, 3, 4, 5)],
    ),
    "inner product": (
        simple("InnerProduct", "inner_product_param { num_output: 5 }"),
        [w(5, 12), w(5)],
        [(2, 3, 2, 2)],
    ),
    "inner product transposed": (
        simple(
            "InnerProduct",
            "inner_product_param { num_output: 5 transpose: true bias_term: false axis: 2 }",
        ),
        [w(4, 5)],
        [(2, 3, 4)],
    ),
    "relu": (simple("ReLU", "relu_param { negative_slope: 0.1 }"), [], [(2, 3)]),
    "relu6": (simple("ReLU6"), [], [(2, 3)]),
    "prelu": (simple("PReLU"), [w(3)], [(2, 3, 4, 5)]),
    "elu": (simple("ELU", "elu_param { alpha: 0.5 }"), [], [(2, 3)]),
    **{
        kind: (simple(kind), [], [(2, 5)])
        for kind in ("Sigmoid", "TanH", "AbsVal", "BNLL", "Dropout")
    },
    "power": (simple("Power", "power_param { power: 2 scale: 0.5 shift: 1.5 }"), [], [(2, 3)]),
    "exp": (simple("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }"), [], [(2, 3)]),
    "log": (simple("Log", "log_param { base: 10 scale: 0.01 shift: 2 }"), [], [(2, 3)]),
    "lrn": (simple("LRN", "lrn_param { local_size: 3 alpha: 0.2 k: 2 }"), [], [(2, 5, 3, 3)]),
    "lrn within": (
        simple("LRN", "lrn_param { local_size: 3 alpha: 0.2 norm_region: WITHIN_CHANNEL }"),
        [],
        [(2, 5, 4, 3)],
    ),
    "batch norm": (
        simple("BatchNorm", "batch_norm_param { eps: 0.01 }"),
        [w(3), np.abs(w(3)), np.array([4.0], np.float32)],
        [(2, 3, 4, 5)],
    ),
    "scale": (simple("Scale", "scale_param { bias_term: true }"), [w(3), w(3)], [(2, 3, 4, 5)]),
    "bias": (simple("Bias"), [w(3)], [(2, 3, 4, 5)]),
    "scale by another": (simple("Scale", "scale_param { axis: 0 }"), [], [(2, 3, 4, 5), (2, 3)]),
    "sum": (simple("Eltwise", "eltwise_param { coeff: 1 coeff: -0.5 }"), [], [(2, 3), (2, 3)]),
    "product": (simple("Eltwise", "eltwise_param { operation: PROD }"), [], [(2, 3), (2, 3)]),
    "maximum": (simple("Eltwise", "eltwise_param { operation: MAX }"), [], [(2, 3), (2, 3)]),
    "concat": (simple("Concat", "concat_param { axis: 2 }"), [], [(2, 3, 4, 5), (2, 3, 2, 5)]),
    "slice": (
        simple("Slice", "slice_param { slice_point: 1 slice_point: 3 }", ("a", "b", "c")),
        [],
        [(2, 6, 4)],
    ),
    "flatten": (simple("Flatten", "flatten_param { axis: 1 end_axis: 2 }"), [], [(2, 3, 4, 5)]),
    "reshape": (
        simple("Reshape", "reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 5 } }"),
        [],
        [(2, 6, 4, 5)],
    ),
    "reshape within": (
        simple("Reshape", "reshape_param { shape { dim: 2 dim: -1 } axis: 1 num_axes: 1 }"),
        [],
        [(2, 6, 4)],
    ),
    "permute": (
        simple("Permute", "permute_param { order: 0 order: 2 order: 3 }"),
        [],
        [(2, 3, 4, 5)],
    ),
    "softmax": (simple("Softmax"), [], [(2, 3, 4, 5)]),
    "crop": (
        simple("Crop", "crop_param { axis: 2 offset: 1 offset: 2 }"),
        [],
        [(2, 3, 6, 7), (2, 3, 4, 5)],
    ),
    "normalize": (
        simple("Normalize", "norm_param { across_spatial: false }"),
        [w(3)],
        [(2, 3, 4, 5)],
    ),
    "shuffle": (simple("ShuffleChannel", "shuffle_channel_param { group: 3 }"), [], [(2, 6, 4, 5)]),
}


def source(path: Path) -> Source:
    return Source(location=str(path), format="caffe/caffemodel")


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_agrees_with_its_definition(case: str, tmp_path: Path) -> None:
    layer, blobs, shapes = LAYERS[case]
    path = write(tmp_path, layer, blobs, shapes)
    result = plugin.convert(ConvertRequest(source=source(path), output=str(tmp_path / "o.onnx")))
    feed = {
        f"x{n}": RANDOM.standard_normal(shape).astype(np.float32) for n, shape in enumerate(shapes)
    }
    expected = plugin.reference(ReferenceRequest(source=source(path))).run(feed)
    found = run(tmp_path / "o.onnx", feed)
    assert list(found) == [spec.name for spec in result.signature.outputs] == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5)


def test_the_old_form_of_layers_and_blobs_is_read(tmp_path: Path) -> None:
    layer = 'type: INNER_PRODUCT top: "y" inner_product_param { num_output: 5 }'
    path = write(tmp_path, layer, [w(5, 12), w(5)], [(2, 12)], old=True)
    assert dk.convert(path, tmp_path / "o.onnx").verified


def test_what_only_training_needs_is_dropped_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, simple("Sigmoid"), [], [(1, 3)])
    text = tmp_path / "net.prototxt"
    text.write_text(
        text.read_text()
        + '\nlayer { name: "loss" type: "SoftmaxWithLoss" bottom: "y" bottom: "label" top: "l" }'
        + '\nlayer { name: "train" type: "Power" bottom: "x0" top: "z" include { phase: TRAIN } }'
    )
    conversion = dk.convert(path, tmp_path / "o.onnx")
    assert [spec.name for spec in conversion.signature.outputs] == ["y"]
    assert conversion.repairs == ("layers of training dropped: loss (SoftmaxWithLoss)",)


def test_a_batch_in_a_layers_settings_stays_fixed(tmp_path: Path) -> None:
    layer = simple("Reshape", "reshape_param { shape { dim: 1 dim: -1 } }")
    conversion = dk.convert(write(tmp_path, layer, [], [(1, 3, 4)]), tmp_path / "o.onnx")
    assert conversion.signature.inputs[0].shape == (1, 3, 4)
    layer = simple("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }")
    conversion = dk.convert(write(tmp_path, layer, [], [(1, 3, 4)]), tmp_path / "o.onnx")
    assert conversion.signature.inputs[0].shape == ("batch", 3, 4)


def test_refusals_name_what_and_where(tmp_path: Path) -> None:
    path = write(tmp_path, simple("DetectionOutput"), [], [(1, 3)])
    with pytest.raises(UnsupportedError, match=r"DetectionOutput \(layer `one`\)"):
        dk.convert(path, tmp_path / "o.onnx")
    path = write(
        tmp_path, simple("InnerProduct", "inner_product_param { num_output: 5 }"), [], [(1, 3)]
    )
    with pytest.raises(SourceError, match="no weights for layer `one`"):
        dk.convert(path, tmp_path / "o.onnx")
    text = tmp_path / "net.prototxt"
    text.write_text(
        'layer { name: "d" type: "Data" top: "data" } layer { name: "s" type: "Sigmoid" bottom: "data" top: "y" }'
    )
    with pytest.raises(UsageError, match="data") as caught:
        dk.convert(path, tmp_path / "o.onnx")
    assert "--input" in caught.value.hint
    text.unlink()
    with pytest.raises(SourceError, match=r"net\.prototxt"):
        dk.convert(path, tmp_path / "o.onnx")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.booleans(),
    st.integers(0, 1 << 30),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_file_is_an_error_with_a_name(
    tmp_path: Path, of_text: bool, cut: int, changes: list[tuple[int, int]]
) -> None:
    layer = simple("Convolution", "convolution_param { num_output: 2 kernel_size: 3 }")
    path = write(tmp_path, layer, [w(2, 3, 3, 3), w(2)], [(1, 3, 5, 5)])
    damaged = tmp_path / ("net.prototxt" if of_text else "net.caffemodel")
    data = bytearray(damaged.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    damaged.write_bytes(bytes(data[: 1 + cut % len(data)]) if cut % 3 == 0 else bytes(data))
    try:
        plugin.inspect(source(path))
    except DeploykitError:
        return


def test_reading_names_the_format_of_what_it_read(tmp_path: Path) -> None:
    path = write(tmp_path, simple("Sigmoid"), [], [(1, 3)])
    net = reading.read(path)
    assert (net.name, net.outputs, dict(net.inputs)) == ("net", ("y",), {"x0": (1, 3)})
