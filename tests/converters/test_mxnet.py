"""MXNet symbols: what MXNet computed, every operator by definition, every form of stored array."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.mxnet import plugin, reading
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from deploykit.tensor_spec import parse_input

SHAPES = {
    "mtcnn_det1": (),
    "mtcnn_det2": ("data:float32[batch,3,24,24]",),
    "mtcnn_det3": ("data:float32[batch,3,48,48]",),
    "xdl_dnn": ("comm:float32[batch,540]", "ncomm:float32[batch,360]"),
}


def run(path: Path, feed: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_a_real_model_gives_what_mxnet_gave(name: str, shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "mxnet" / name
    options = dk.SourceOptions.parse(inputs=SHAPES[name])
    conversion = dk.convert(folder, tmp_path / "out.onnx", source=options)
    assert conversion.verified
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    golden = np.load(folder / "golden.npz")
    assert {spec.name for spec in conversion.signature.inputs} == set(names["in"].values())
    assert conversion.signature.inputs[0].shape is not None
    assert conversion.signature.inputs[0].shape[0] == "batch"
    found = run(tmp_path / "out.onnx", {n: golden[f"in_{k}"] for k, n in names["in"].items()})
    assert set(found) == set(names["out"].values())
    for key, output in names["out"].items():
        np.testing.assert_allclose(found[output], golden[f"out_{key}"], rtol=1e-3, atol=1e-5)


def test_a_size_that_only_the_user_knows_is_asked_for(shared_models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes|none of the sizes"):
        dk.convert(shared_models / "mxnet" / "mtcnn_det2", tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="comm") as caught:
        dk.convert(shared_models / "mxnet" / "xdl_dnn", tmp_path / "out.onnx")
    assert "--input" in caught.value.hint


# ---- operators, in models written here

RANDOM = np.random.default_rng(3)


def w(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32) / 2


def stored(array: Any, form: str = "V2") -> bytes:
    """Write an array as MXNet's versions did."""
    dtype = {"f4": 0, "f8": 1, "f2": 2, "u1": 3, "i4": 4, "i1": 5, "i8": 6}[array.dtype.str[1:]]
    tail = struct.pack("<ii", 1, 0) + struct.pack("<i", dtype) + array.tobytes()
    head: bytes
    sizes = struct.pack(f"<{array.ndim}q", *array.shape)
    if form == "V0":
        head = struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape)
        return head + bytes(tail)
    magic = {"V1": reading.V1, "V2": reading.V2, "V3": reading.V3}[form]
    storage = b"" if form == "V1" else struct.pack("<i", 0)
    head = struct.pack("<I", magic) + storage + struct.pack("<I", array.ndim)
    return head + sizes + bytes(tail)


def params(arrays: dict[str, bytes]) -> bytes:
    names = b"".join(struct.pack("<Q", len(one)) + one.encode() for one in arrays)
    count = struct.pack("<Q", len(arrays))
    return struct.pack("<QQ", 0x112, 0) + count + b"".join(arrays.values()) + count + names


def write(
    folder: Path,
    op: str,
    attrs: dict[str, Any],
    weights: dict[str, Any],
    inputs: int = 1,
    key: str = "attrs",
) -> Path:
    names = [f"x{number}" for number in range(inputs)] + list(weights)
    nodes: list[dict[str, Any]] = [{"op": "null", "name": name, "inputs": []} for name in names]
    nodes.append(
        {
            "op": op,
            "name": "node",
            key: {name: str(value) for name, value in attrs.items()},
            "inputs": [[number, 0, 0] for number in range(len(names))],
        }
    )
    outputs = attrs.get("num_outputs", 1)
    heads = [[len(names), at, 0] for at in range(int(outputs))]
    path = folder / "net-symbol.json"
    path.write_text(json.dumps({"nodes": nodes, "arg_nodes": [], "heads": heads}))
    entries = {f"arg:{name}": stored(value) for name, value in weights.items()}
    (folder / "net-0003.params").write_bytes(params(entries or {"arg:unused": stored(w(1))}))
    return path


CONV = {"weight": w(6, 2, 3, 2), "bias": w(6)}
OPERATORS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[tuple[int, ...]]]] = {
    "convolution": (
        "Convolution",
        {
            "kernel": (3, 2),
            "stride": (2, 1),
            "pad": (1, 2),
            "dilate": (1, 2),
            "num_filter": 6,
            "num_group": 2,
        },
        CONV,
        [(2, 4, 9, 8)],
    ),
    "convolution 1d": (
        "Convolution",
        {"kernel": (3,), "num_filter": 4, "no_bias": True},
        {"weight": w(4, 2, 3)},
        [(2, 2, 9)],
    ),
    "deconvolution": (
        "Deconvolution",
        {
            "kernel": (3, 2),
            "stride": (2, 3),
            "pad": (1, 0),
            "adj": (1, 0),
            "num_filter": 4,
            "num_group": 2,
        },
        {"weight": w(4, 2, 3, 2)},
        [(2, 4, 5, 4)],
    ),
    "fully connected": (
        "FullyConnected",
        {"num_hidden": 5},
        {"weight": w(5, 12), "bias": w(5)},
        [(2, 3, 4)],
    ),
    "fully connected last": (
        "FullyConnected",
        {"num_hidden": 5, "flatten": False},
        {"weight": w(5, 4), "bias": w(5)},
        [(2, 3, 4)],
    ),
    "batch norm fixed": (
        "BatchNorm",
        {"fix_gamma": True, "eps": 0.01},
        {"gamma": w(3), "beta": w(3), "mean": w(3), "var": np.abs(w(3))},
        [(2, 3, 4)],
    ),
    "batch norm": (
        "BatchNorm",
        {"fix_gamma": "False"},
        {"gamma": w(3), "beta": w(3), "mean": w(3), "var": np.abs(w(3))},
        [(2, 3, 4, 5)],
    ),
    **{
        f"pooling {kind} {convention} {pad} {count}": (
            "Pooling",
            {
                "kernel": (3, 2),
                "stride": (2, 2),
                "pad": pad,
                "pool_type": kind,
                "pooling_convention": convention,
                "count_include_pad": count,
            },
            {},
            [(2, 3, 8, 7)],
        )
        for kind, counts in (("max", (True,)), ("avg", (True, False)))
        for convention in ("valid", "full")
        for pad in ((0, 0), (1, 0))
        for count in counts
    },
    "global pooling": (
        "Pooling",
        {"kernel": (1, 1), "global_pool": True, "pool_type": "avg"},
        {},
        [(2, 3, 4, 5)],
    ),
    **{
        f"activation {kind}": ("Activation", {"act_type": kind}, {}, [(2, 5)])
        for kind in ("relu", "sigmoid", "tanh", "softrelu", "softsign")
    },
    **{
        f"leaky {kind}": ("LeakyReLU", {"act_type": kind, "slope": 0.1}, {}, [(2, 5, 3)])
        for kind in ("leaky", "elu", "selu", "gelu", "rrelu")
    },
    "prelu": ("LeakyReLU", {"act_type": "prelu"}, {"gamma": w(5)}, [(2, 5, 3, 2)]),
    "softmax head": ("SoftmaxOutput", {}, {}, [(2, 3, 4)]),
    "softmax head multi": ("SoftmaxOutput", {"multi_output": True}, {}, [(2, 3, 4)]),
    "logistic head": ("LogisticRegressionOutput", {}, {}, [(2, 3)]),
    "softmax activation": ("SoftmaxActivation", {"mode": "channel"}, {}, [(2, 3, 4)]),
    "softmax": ("softmax", {"axis": 1, "temperature": 2.0}, {}, [(2, 3, 4)]),
    "log softmax": ("log_softmax", {}, {}, [(2, 3, 4)]),
    "concat": ("Concat", {"dim": 2, "num_args": 2}, {}, [(2, 3, 4), (2, 3, 5)]),
    "split": ("SliceChannel", {"num_outputs": 2, "axis": 1}, {}, [(2, 4, 3)]),
    "split squeezed": (
        "SliceChannel",
        {"num_outputs": 3, "axis": 1, "squeeze_axis": True},
        {},
        [(2, 3, 4)],
    ),
    "reshape": ("Reshape", {"shape": (0, -1)}, {}, [(2, 3, 4)]),
    "reshape codes": ("Reshape", {"shape": (0, -3, -4, 2, -1)}, {}, [(2, 3, 5, 4)]),
    "reshape rest": ("Reshape", {"shape": (0, -4, -1, 2, -2)}, {}, [(2, 6, 5, 4)]),
    "transpose": ("transpose", {"axes": (0, 2, 1)}, {}, [(2, 3, 4)]),
    "swap": ("SwapAxis", {"dim1": 1, "dim2": 2}, {}, [(2, 3, 4)]),
    "expand": ("expand_dims", {"axis": 1}, {}, [(2, 3)]),
    "mean": ("mean", {"axis": (1, 2), "keepdims": True}, {}, [(2, 3, 4)]),
    "sum excluding": ("sum", {"axis": 0, "exclude": True}, {}, [(2, 3, 4)]),
    "slice": ("slice_axis", {"axis": 1, "begin": 1, "end": -1}, {}, [(2, 5)]),
    "slice to the end": ("slice_axis", {"axis": 1, "begin": 2, "end": None}, {}, [(2, 5)]),
    "clip": ("clip", {"a_min": -0.5, "a_max": 0.25}, {}, [(2, 5)]),
    "lrn": ("LRN", {"nsize": 3, "alpha": 0.2, "knorm": 1.5}, {}, [(2, 5, 3, 3)]),
    "upsampling": ("UpSampling", {"scale": 2, "sample_type": "nearest"}, {}, [(2, 3, 4, 5)]),
    "pad": ("Pad", {"mode": "edge", "pad_width": (0, 0, 0, 0, 1, 2, 2, 0)}, {}, [(2, 3, 4, 5)]),
    "l2": ("L2Normalization", {"mode": "channel"}, {}, [(2, 3, 4)]),
    "instance norm": ("InstanceNorm", {"eps": 0.01}, {"gamma": w(3), "beta": w(3)}, [(2, 3, 4, 5)]),
    **{
        f"{op} scalar": (f"_{op}_scalar", {"scalar": 1.5}, {}, [(2, 3)])
        for op in ("plus", "minus", "rminus", "mul", "div", "maximum", "minimum", "rpower")
    },
    **{
        f"broadcast {op}": (f"broadcast_{op}", {}, {}, [(2, 3, 4), (2, 1, 4)])
        for op in ("add", "sub", "mul", "div", "maximum")
    },
    "layer norm": ("LayerNorm", {"eps": 0.01}, {"gamma": w(4), "beta": w(4)}, [(2, 3, 4)]),
    "slice with steps": (
        "slice",
        {"begin": (None, 1, -3), "end": (None, None, -1), "step": (1, 2, 1)},
        {},
        [(2, 6, 5)],
    ),
    "slice old": ("crop", {"begin": (0, 1), "end": (1, 3)}, {}, [(2, 6)]),
    "cast": ("Cast", {"dtype": "int32"}, {}, [(2, 6)]),
    "stack": ("stack", {"axis": 1, "num_args": 2}, {}, [(2, 3), (2, 3)]),
    "tile": ("tile", {"reps": (2, 3)}, {}, [(2, 3, 4)]),
    "square": ("square", {}, {}, [(2, 3)]),
    "hard sigmoid": ("hard_sigmoid", {"alpha": 0.3}, {}, [(2, 3)]),
    "root of width": ("_contrib_div_sqrt_dim", {}, {}, [(2, 3, 4)]),
    "depth to space": ("depth_to_space", {"block_size": 2}, {}, [(2, 8, 3, 2)]),
    "space to depth": ("space_to_depth", {"block_size": 2}, {}, [(2, 2, 4, 6)]),
    "take": ("take", {}, {"places": np.array([[1, 0], [9, -2]], np.float32)}, [(2, 4)]),
    "take along": ("take", {"axis": 1}, {"places": np.array([1, 3], np.float32)}, [(2, 4)]),
    "broadcast to": ("broadcast_to", {"shape": (0, 5, 0)}, {}, [(2, 1, 3)]),
    "batch dot": ("batch_dot", {"transpose_b": True}, {}, [(2, 3, 4), (2, 5, 4)]),
    "batch dot turned": ("batch_dot", {"transpose_a": True}, {}, [(2, 4, 3), (2, 4, 5)]),
    "batch dot of one": ("batch_dot", {}, {"w": w(1, 4, 5)}, [(2, 3, 4)]),
    "dot": ("dot", {}, {"w": w(4, 5)}, [(2, 4)]),
    "greater": ("broadcast_greater", {}, {}, [(2, 3), (2, 3)]),
    "not equal": ("broadcast_not_equal", {}, {"w": np.zeros((1, 3), np.float32)}, [(2, 3)]),
    "lesser scalar": ("_lesser_scalar", {"scalar": 0.2}, {}, [(2, 3)]),
    "where": ("where", {}, {}, [(2, 3), (2, 3), (2, 3)]),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_an_operator_agrees_with_its_definition(case: str, tmp_path: Path) -> None:
    op, attrs, weights, shapes = OPERATORS[case]
    path = write(tmp_path, op, attrs, weights, len(shapes))
    specs = tuple(
        parse_input(f"x{n}:float32[batch,{','.join(map(str, shape[1:]))}]")
        for n, shape in enumerate(shapes)
    )
    source = Source(location=str(path), format="mxnet/symbol", inputs=specs)
    result = plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "o.onnx")))
    feed = {
        f"x{n}": RANDOM.standard_normal(shape).astype(np.float32) for n, shape in enumerate(shapes)
    }
    expected = plugin.reference(ReferenceRequest(source=source)).run(feed)
    found = run(tmp_path / "o.onnx", feed)
    assert list(found) == [spec.name for spec in result.signature.outputs] == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("key", ["param", "attr", "attrs"])
def test_symbols_of_every_age_name_their_attributes(key: str, tmp_path: Path) -> None:
    path = write(
        tmp_path, "FullyConnected", {"num_hidden": 2}, {"weight": w(2, 3), "bias": w(2)}, key=key
    )
    assert dk.convert(path, tmp_path / "o.onnx").verified


@pytest.mark.parametrize("form", ["V0", "V1", "V2", "V3"])
@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i4", "i8", "u1"])
def test_arrays_of_every_version_are_read(form: str, dtype: str, tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    (tmp_path / "p").write_bytes(
        params({"arg:a": stored(array, form), "aux:b": stored(array, form)})
    )
    found = reading.read_parameters(tmp_path / "p")
    assert set(found) == {"a", "b"}
    np.testing.assert_array_equal(found["b"], array)
    assert found["a"].dtype == array.dtype


def test_sparse_arrays_become_dense(tmp_path: Path) -> None:
    dense = np.zeros((4, 3), np.float32)
    dense[[1, 3]] = w(2, 3)
    device = struct.pack("<iii", 1, 0, 0)
    rows = (
        struct.pack("<IiI2q", reading.V2, 1, 2, 2, 3)
        + struct.pack("<I2q", 2, 4, 3)
        + device
        + struct.pack("<iI1q", 6, 1, 2)
        + dense[[1, 3]].tobytes()
        + np.array([1, 3], np.int64).tobytes()
    )
    values, columns = dense[dense != 0], np.nonzero(dense)[1]
    starts = np.concatenate([[0], np.cumsum((dense != 0).sum(1))])
    csr = (
        struct.pack("<IiI1q", reading.V2, 2, 1, len(values))
        + struct.pack("<I2q", 2, 4, 3)
        + device
        + struct.pack("<iI1q", 6, 1, 5)
        + struct.pack("<iI1q", 6, 1, len(columns))
        + values.tobytes()
        + starts.astype(np.int64).tobytes()
        + columns.astype(np.int64).tobytes()
    )
    (tmp_path / "p").write_bytes(params({"arg:rows": rows, "arg:csr": csr}))
    found = reading.read_parameters(tmp_path / "p")
    np.testing.assert_array_equal(found["rows"], dense)
    np.testing.assert_array_equal(found["csr"], dense)


def test_operators_without_onnx_form_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path, "Custom", {"op_type": "mine"}, {})
    with pytest.raises(UnsupportedError, match=r"Custom \(node `node`\)"):
        dk.convert(path, tmp_path / "o.onnx")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 1 << 30),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=8),
)
def test_damaged_parameters_are_an_error_with_a_name(
    tmp_path: Path, cut: int, changes: list[tuple[int, int]]
) -> None:
    path = write(tmp_path, "FullyConnected", {"num_hidden": 2}, {"weight": w(2, 3), "bias": w(2)})
    weights = tmp_path / "net-0003.params"
    data = bytearray(weights.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    weights.write_bytes(bytes(data[: 1 + cut % len(data)]) if cut % 3 == 0 else bytes(data))
    try:
        plugin.inspect(Source(location=str(path), format="mxnet/symbol"))
    except DeploykitError:
        return


def test_a_window_that_covers_nothing_is_refused(tmp_path: Path) -> None:
    attrs = {"kernel": (2, 2), "stride": (2, 2), "pad": (1, 1), "pooling_convention": "full"}
    path = write(tmp_path, "Pooling", attrs, {})
    specs = (parse_input("x0:float32[batch,3,7,7]"),)
    with pytest.raises(UnsupportedError, match="outside"):
        plugin.inspect(Source(location=str(path), format="mxnet/symbol", inputs=specs))


def test_missing_parameters_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "FullyConnected", {"num_hidden": 2}, {"weight": w(2, 3)})
    (tmp_path / "net-0003.params").unlink()
    with pytest.raises(SourceError, match=r"net-0000\.params"):
        dk.convert(path, tmp_path / "o.onnx")


@pytest.mark.parametrize(
    ("op", "attrs", "inputs"),
    [
        ("Dropout", {"mode": "always"}, 1),
        ("log_softmax", {"use_length": True}, 2),
        ("LayerNorm", {"output_mean_var": True}, 3),
        ("take", {"mode": "raise"}, 2),
    ],
)
def test_a_form_that_would_come_out_wrong_is_refused(
    op: str, attrs: dict[str, Any], inputs: int, tmp_path: Path
) -> None:
    path = write(tmp_path, op, attrs, {}, inputs)
    specs = tuple(parse_input(f"x{n}:float32[batch,4,5]") for n in range(inputs))
    source = Source(location=str(path), format="mxnet/symbol", inputs=specs)
    with pytest.raises(UnsupportedError, match="node"):
        plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "o.onnx")))
