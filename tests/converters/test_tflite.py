"""TensorFlow Lite files: real ones against golden outputs, the batch, refusals, damage."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from deploykit._plugins.converters.tflite import (
    evaluation,
    flexbuffer,
    options,
    plugin,
    reading,
    rounding,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.formats.flatbuffer import Buffer
from deploykit.formats.tflite_operators import BUILTIN
from deploykit.protocol import ConvertRequest, DynamicAxis, ReferenceRequest, Source
from deploykit.tensor_spec import parse_input

OPERATORS = Path(__file__).resolve().parent.parent / "fixtures" / "tflite_operators.zip"
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")

# What TensorFlow Lite's own kernels differ by, as golden.json has it, and for floats no less than
# the last digits of sums in another order.
TOLERANCES = {
    "dtln_1": 5e-6,
    "micro_speech_int8": 0,
    "mlperf_kws_dscnn_float": 1e-5,
    "mlperf_resnet8_cifar_int8": 21,
    "mlperf_vww96_float": 1e-6,
    "mnist_lstm_float": 1e-6,
    "ultraface_rfb320": 2e-5,
}


def source(path: Path, *inputs: str, **more: Any) -> Source:
    specs = tuple(parse_input(text) for text in inputs)
    return Source(location=str(path), format="tensorflow/tflite", inputs=specs, **more)


def case(name: str, folder: Path) -> Path:
    """Put a model of the fixtures into `folder`."""
    with zipfile.ZipFile(OPERATORS) as archive:
        (folder / f"{name}.tflite").write_bytes(archive.read(f"{name}.tflite"))
    return folder / f"{name}.tflite"


def run(path: Path, feed: dict[str, Any], level: str = LEVELS[0]) -> dict[str, Any]:
    given_options = onnxruntime.SessionOptions()
    given_options.log_severity_level = 4
    given_options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(path, given_options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize("name", TOLERANCES)
def test_a_real_model_gives_what_tensorflow_lite_gave(
    name: str, shared_models: Path, tmp_path: Path
) -> None:
    folder = shared_models / "tflite" / name
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    golden = np.load(folder / "golden.npz")
    feed = {n.removesuffix(":0"): golden[f"in_{k}"] for k, n in names["in"].items()}
    (path,) = folder.glob("*.tflite")
    result = plugin.convert(ConvertRequest(source=source(path), output=str(tmp_path / "m.onnx")))
    reference = plugin.reference(ReferenceRequest(source=source(path)))
    answers = [reference.run(feed), *(run(tmp_path / "m.onnx", feed, level) for level in LEVELS)]
    assert [spec.name for spec in result.signature.outputs] == list(answers[0])
    for key, output in names["out"].items():
        wanted = golden[f"out_{key}"].astype(np.float64)
        for found in answers:
            value = found[output.removesuffix(":0")]
            np.testing.assert_allclose(value, wanted, rtol=0, atol=TOLERANCES[name])


def test_an_int8_model_is_as_near_its_kernels_as_they_are(shared_models: Path) -> None:
    """The reference kernels of TensorFlow Lite are 20 steps from the golden output, and so are we."""
    folder = shared_models / "tflite" / "mlperf_resnet8_cifar_int8"
    about = json.loads((folder / "golden.json").read_text())
    golden = np.load(folder / "golden.npz")
    (path,) = folder.glob("*.tflite")
    graph = reading.read(path).graphs[0]
    ((key, _),) = about["tensor_names"]["in"].items()
    ((out, _),) = about["tensor_names"]["out"].items()
    values = evaluation.evaluate(graph, {graph.inputs[0]: golden[f"in_{key}"]})
    apart = np.abs(values[graph.outputs[0]].astype(int) - golden[f"out_{out}"].astype(int)).max()
    assert apart == about["spread_of_the_frameworks_own_kernels"]["BUILTIN_REF"][0]


def test_a_quantised_model_becomes_qdq_and_is_proven(shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "tflite" / "micro_speech_int8"
    conversion = dk.convert(folder, tmp_path / "m.onnx")
    assert conversion.verified
    assert conversion.steps == 1
    assert conversion.parity[0].max_abs_error <= 1
    graph = onnx.load(tmp_path / "m.onnx").graph
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            kinds = [made[name].op_type for name in node.input]
            assert kinds == ["DequantizeLinear"] * 3
    types = Counter(one.data_type for one in graph.initializer if len(one.dims) > 1)
    assert set(types) == {onnx.TensorProto.INT8}
    (name,) = [one.name for one in graph.input]
    many = np.random.default_rng(0).integers(-128, 128, (5, 1960)).astype(np.int8)
    assert run(tmp_path / "m.onnx", {name: many})["labels_softmax"].shape == (5, 4)


def test_each_member_of_a_batch_is_rounded_alone(shared_models: Path, tmp_path: Path) -> None:
    """A loud member must not make the steps of a quiet one coarse."""
    (path,) = (shared_models / "tflite" / "mlperf_kws_dscnn_float").glob("*.tflite")
    result = plugin.convert(ConvertRequest(source=source(path), output=str(tmp_path / "m.onnx")))
    assert result.signature.inputs[0].shape == ("batch", 49, 10, 1)
    assert 0 < result.atol < 0.05
    random = np.random.default_rng(3)
    members = [random.standard_normal((1, 49, 10, 1)).astype(np.float32) * s for s in (1, 50)]
    together = run(tmp_path / "m.onnx", {"input_1": np.concatenate(members)})["Identity"]
    alone = [run(tmp_path / "m.onnx", {"input_1": one})["Identity"] for one in members]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=2e-3)


def test_a_batch_that_cannot_grow_stays_and_says_why(tmp_path: Path) -> None:
    path = case("dense_flat", tmp_path)
    result = plugin.convert(ConvertRequest(source=source(path), output=str(tmp_path / "m.onnx")))
    assert result.signature.inputs[0].shape == (1, 3, 6)
    assert "the batch stays 1" in result.repairs[0]
    wish = (DynamicAxis(input="t0", axis=0, name="n"),)
    with pytest.raises(UnsupportedError, match="batch cannot grow"):
        plugin.convert(
            ConvertRequest(source=source(path), output=str(tmp_path / "n.onnx"), dynamic=wish)
        )


def test_the_user_fixes_or_names_the_batch(tmp_path: Path) -> None:
    path = case("softmax", tmp_path)
    assert plugin.inspect(source(path)).inputs[0].shape == ("batch", 5, 4)
    assert plugin.inspect(source(path, "t0:float32[1,5,4]")).inputs[0].shape == (1, 5, 4)
    wish = (DynamicAxis(input="t0", axis=0, name="n"),)
    request = ConvertRequest(source=source(path), output=str(tmp_path / "n.onnx"), dynamic=wish)
    assert plugin.convert(request).signature.inputs[0].shape == ("n", 5, 4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("z:float32[1,5,4]", "no input `z`"),
        ("t0:int32[1,5,4]", "is float32"),
        ("t0:float32[1,20]", r"\[1, 5, 4\] in the model"),
        ("t0:float32[1,?,4]", "axis 1 of the input `t0` needs a size"),
    ],
)
def test_words_about_inputs_that_do_not_fit(words: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        plugin.inspect(source(case("softmax", tmp_path), words))


def test_inputs_of_other_sizes_are_what_an_interpreter_resized_would_take(tmp_path: Path) -> None:
    path = case("conv", tmp_path)
    words = "t0:float32[1,12,9,4]"
    request = ConvertRequest(source=source(path, words), output=str(tmp_path / "m.onnx"))
    assert plugin.convert(request).signature.inputs[0].shape == (1, 12, 9, 4)
    feed = {"t0": np.random.default_rng(0).standard_normal((1, 12, 9, 4)).astype(np.float32)}
    reference = plugin.reference(ReferenceRequest(source=source(path, words)))
    wanted = reference.run(feed)["y0"]
    assert wanted.shape == (1, 6, 5, 5)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", feed)["y0"], wanted, atol=1e-5)
    with pytest.raises(UsageError, match="does not fit the sizes"):
        plugin.inspect(source(case("reshape", tmp_path), "t0:float32[1,7,5]"))


def test_a_setting_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no setting `signature`"):
        plugin.inspect(source(case("softmax", tmp_path), options={"signature": "x"}))


def with_kind(path: Path, number: int) -> Path:
    """Turn the operator of a model into another."""
    content = bytearray(path.read_bytes())
    (code,) = Buffer(memoryview(bytes(content))).root().tables(1)
    for field, width, value in ((0, 1, min(number, 127)), (3, 4, number)):
        at = code._field(field)
        if at is not None:
            content[at : at + width] = value.to_bytes(width, "little")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["RFFT2D", "CUSTOM", "HASHTABLE_LOOKUP", "WHILE"])
def test_an_operator_without_a_form_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = with_kind(case("l2_pool", tmp_path), BUILTIN.index(kind))
    with pytest.raises(UnsupportedError, match=r"(makes `y0`)") as raised:
        plugin.inspect(source(path))
    assert raised.value.operators[0].startswith("custom." if kind == "CUSTOM" else kind)
    assert raised.value.hint


def test_options_have_the_defaults_of_the_schema() -> None:
    found = options.options("CONV_2D", None)
    assert found["dilation_w"] == found["dilation_h"] == 1
    assert found["activation"] == "NONE"


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\0\0\0\0TFL3", b"\x10\0\0\0TFL3" + b"\xff" * 40]
)
def test_what_is_no_model_is_an_error_with_a_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "no.tflite"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"no\.tflite"):
        plugin.inspect(source(path))


@pytest.mark.parametrize(
    "name", ["int8_conv", "lstm_projection", "strided_slice", "space_to_batch"]
)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_model_is_converted_or_refused(
    name: str, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is inside: an error of our own or a model, never a traceback, a hang or gigabytes."""
    path = case(name, tmp_path)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[at] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF, content[at] ^ 4]))
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(bytes(content[: data.draw(st.integers(8, len(content)))]))
    output = tmp_path / "damaged.onnx"
    output.unlink(missing_ok=True)
    try:
        plugin.convert(ConvertRequest(source=source(damaged), output=str(output)))
    except DeploykitError as error:
        message = error.message
    else:
        message = f"{len(onnx.load(output).graph.node)} nodes"
    assert message.isprintable()
    assert len(message) < 2000


def test_options_of_custom_operators_are_read_as_they_were_written() -> None:
    with zipfile.ZipFile(OPERATORS) as archive, archive.open("detections_by_class.tflite") as file:
        root = Buffer(memoryview(file.read())).root()
    (graph,) = root.tables(2)
    (operator,) = graph.tables(3)
    start, size = operator.vector(5, 1)
    content = bytes(root.buffer.view[start : start + size])
    found = flexbuffer.numbers(content)
    assert found["max_detections"] == 12
    assert found["use_regular_nms"] == 1
    assert found["nms_iou_threshold"] == pytest.approx(0.4)
    for cut in range(len(content)):
        with pytest.raises(ValueError, match=r"custom operator|of a|utf|name"):
            flexbuffer.numbers(content[:cut])


@given(content=st.binary(max_size=80))
def test_any_bytes_are_options_or_an_error(content: bytes) -> None:
    try:
        found = flexbuffer.numbers(content)
    except ValueError:
        found = {}
    assert all(isinstance(value, (int, float)) for value in found.values())


def test_the_allowance_is_what_both_ways_of_rounding_differ_by(
    shared_models: Path, tmp_path: Path
) -> None:
    def of(path: Path) -> tuple[int, float]:
        found: tuple[int, float] = rounding.allowance(reading.read(path).graphs[0])
        return found

    assert of(case("conv", tmp_path)) == (0, 0.0)
    assert of(case("int8_conv", tmp_path)) == (1, 0.0)
    steps, share = of(case("hybrid_dense", tmp_path))
    assert steps == 0
    assert 0 < share < 0.1
    (path,) = (shared_models / "tflite" / "micro_speech_int8").glob("*.tflite")
    assert of(path) == (1, 0.0)


def test_a_layer_with_state_says_that_it_begins_with_zeros(tmp_path: Path) -> None:
    path = case("svdf", tmp_path)
    result = plugin.convert(ConvertRequest(source=source(path), output=str(tmp_path / "m.onnx")))
    assert "TensorFlow Lite keeps the state of SVDF between runs" in result.repairs[0]
