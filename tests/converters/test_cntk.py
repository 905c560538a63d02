"""CNTK models: real ones against golden outputs; outputs, settings, refusals and damage of v2 files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploykit._plugins.converters.cntk import mapping, plugin, reading_v2, sequences
from deploykit._plugins.converters.cntk.evaluation import COMPUTE
from deploykit._plugins.converters.cntk.graph import Axis
from deploykit._plugins.converters.cntk.network import EMIT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from deploykit.tensor_spec import parse_input
from tests.converters.cntk_cases import (
    both,
    computed,
    convolved,
    multiplied,
    onnx_run,
    recurrent,
    trained,
    w,
)
from tests.converters.cntk_v2_writer import (
    PLACEHOLDER,
    Int,
    Model,
    Shape,
)


@pytest.mark.parametrize(
    "name",
    [
        "v1_cifar10_pretrained_cmf",
        "v1_logreg",
        "v1_mnist_onehidden_bs",
        "v1_resnet20_cifar10",
        "v1_slu_bilstm_cmf",
        "v2_convnet_cifar10",
        "v2_imdb_lstm",
        "v2_jena_gru_type1",
        "v2_policy_mlp",
    ],
)
def test_a_real_model_gives_what_cntk_gave(name: str, shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "cntk" / name
    conversion = dk.convert(folder, tmp_path / "out.onnx")
    assert conversion.verified
    assert not any("fails" in note for note in conversion.notes)
    golden = np.load(folder / "golden.npz")
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    (source,), (output,) = names["in"], names["out"]
    (spec,) = conversion.signature.inputs
    (found,) = onnx_run(tmp_path / "out.onnx", {spec.name: golden[f"in_{source}"]})
    expected = golden[f"out_{output}"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert [one.name for one in conversion.signature.outputs] == [output]


# blocks, outputs, settings, refusals


def test_blocks_within_blocks(tmp_path: Path) -> None:
    weight = w(3, 2)
    model = Model()
    model.input("x", 3)
    model.parameter("W", weight)
    model.variable("p", PLACEHOLDER, (3,))
    model.variable("q", PLACEHOLDER, (3,))
    model.function("Times", "product", "W", "q", outputRank=1)
    model.block("inner", "product", {"q": "p"})
    model.function("ReLU", "relu", "inner_Output_0")
    model.block("outer", "relu", {"p": "x"}, name="layer")
    x = w(4, 3)
    (found,) = both(model.write(tmp_path), {"x": x})
    np.testing.assert_allclose(found, np.maximum(x @ weight, 0), rtol=1e-4, atol=1e-6)
    graph = reading_v2.read(tmp_path / "model.dnn")
    assert [root.name for root in graph.roots] == ["layer"]


def test_what_is_there_for_training_is_cut_off(tmp_path: Path) -> None:
    path = trained().write(tmp_path)
    source = Source(location=str(path), format="cntk/v2")
    result = plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "a.onnx")))
    assert [spec.name for spec in result.signature.inputs] == ["x"]
    assert [spec.name for spec in result.signature.outputs] == ["prediction"]
    assert result.repairs == ("cut off what is there for training: loss_Output_0, total_Output_0",)
    # a file that has nothing but the loss gives what the loss judges
    source = Source(location=str(trained().write(tmp_path, "loss")), format="cntk/v2")
    assert [spec.name for spec in plugin.inspect(source).outputs] == ["prediction"]


def test_an_output_of_another_and_a_second_input_stays(tmp_path: Path) -> None:
    """No label: what it makes is more than a number."""
    model = trained()
    model.functions.pop()
    model.function("Combine", "all", "z_Output_0", "apart_Output_0")
    found = both(model.write(tmp_path), {"x": w(2, 3), "label": w(2, 2)})
    assert [one.shape for one in found] == [(2, 2), (2, 2)]


def test_outputs_are_chosen_by_name_or_uid(tmp_path: Path) -> None:
    path = trained().write(tmp_path)
    (a, b) = both(path, {"x": w(2, 3), "label": w(2, 2)}, outputs="apart, prediction")
    assert a.shape == b.shape == (2, 2)
    with pytest.raises(UsageError, match="no output `nothing`"):
        both(path, {}, outputs="nothing")
    with pytest.raises(UnsupportedError, match="CrossEntropyWithSoftmax"):
        both(path, {}, outputs="loss_Output_0")


def test_settings_and_inputs_that_are_wrong(tmp_path: Path) -> None:
    path = trained().write(tmp_path)
    with pytest.raises(UsageError, match="no setting `colour`"):
        both(path, {}, colour="red")
    with pytest.raises(UsageError, match="`one` or `batch`"):
        both(path, {}, sequences="many")
    for asked, words in (
        ("y:float32[batch,3]", "no input `y`"),
        ("x:float32[batch,4]", "cannot have"),
    ):
        source = Source(location=str(path), format="cntk/v2", inputs=(parse_input(asked),))
        with pytest.raises(UsageError, match=words):
            plugin.inspect(source)
    source = Source(location=str(path), format="cntk/v2", inputs=(parse_input("x:float32[5,3]"),))
    assert plugin.inspect(source).inputs[0].shape == (5, 3)


def test_an_input_of_unknown_shape_is_asked_for(tmp_path: Path) -> None:
    model = Model()
    unknown = {"dynamic_axis": [Axis(index=2**31 - 3)], "data_type": 0}
    model.variable("x", PLACEHOLDER, (2**64 - 2,), **unknown)
    model.parameter("W", w(3, 2))
    model.function("Times", "made", "W", "x", outputRank=1)
    path = model.write(tmp_path)
    with pytest.raises(UsageError, match="does not say the shape of the input `x`") as caught:
        plugin.inspect(Source(location=str(path), format="cntk/v2"))
    assert "--input" in (caught.value.hint or "")
    asked = parse_input("x:float32[batch,5,3]")
    source = Source(location=str(path), format="cntk/v2", inputs=(asked,))
    signature = plugin.inspect(source)
    assert signature.inputs == (asked,)
    assert signature.outputs[0].shape == ("batch", 5, 2)
    x = w(2, 5, 3)
    found = plugin.reference(ReferenceRequest(source=source)).run({"x": x})
    np.testing.assert_allclose(found["made_Output_0"], x @ model.variables[1]["value"], rtol=1e-4)


def test_sizes_that_are_free_stay_free(tmp_path: Path) -> None:
    model = Model()
    free = 2**64 - 3
    model.input("x", 3, free, free)
    kernel = w(4, 3, 3, 3)
    model.parameter("kernel", kernel)
    how: dict[str, Any] = {
        "strides": Shape((1,)),
        "sharing": [True],
        "autoPadding": [True, True, False],
        "lowerPad": Shape((0,)),
        "upperPad": Shape((0,)),
    }
    model.function("Convolution", "made", "kernel", "x", **how)
    path = model.write(tmp_path)
    assert both(path, {"x": w(1, 3, 5, 7)})[0].shape == (1, 4, 5, 7)
    assert both(path, {"x": w(2, 3, 8, 4)})[0].shape == (2, 4, 8, 4)
    model.functions[0]["attributes"]["strides"] = Shape((2, 2, 3))
    path = model.write(tmp_path)
    with pytest.raises(UnsupportedError, match="known only at run time") as caught:
        both(path, {})
    assert "--input" in (caught.value.hint or "")
    asked = parse_input("x:float32[batch,3,8,6]")
    source = Source(location=str(path), format="cntk/v2", inputs=(asked,))
    assert plugin.inspect(source).outputs[0].shape == ("batch", 4, 4, 3)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8"])
def test_other_dtypes(dtype: str, tmp_path: Path) -> None:
    weight = (w(3, 2) * 4).astype(dtype)
    model = Model()
    model.input("x", 3, data_type=2 if dtype == "float64" else 1)
    model.parameter("W", weight)
    model.function("Times", "made", "W", "x", outputRank=1)
    kind = "float64" if dtype == "float64" else "float32"
    x = w(2, 3).astype(kind)
    (found,) = both(model.write(tmp_path), {"x": x})
    assert found.dtype == kind
    np.testing.assert_allclose(found, x @ weight.astype(kind), rtol=1e-4)


def test_names_that_are_not_unique(tmp_path: Path) -> None:
    model = Model()
    model.input("one", 2, name="same")
    model.input("two", 2, name="same")
    model.function("Plus", "sum", "one", "two", name="same")
    source = Source(location=str(model.write(tmp_path)), format="cntk/v2")
    signature = plugin.inspect(source)
    assert [spec.name for spec in signature.inputs] == ["same", "two"]
    assert [spec.name for spec in signature.outputs] == ["same_output"]


def test_a_file_over_two_gigabytes_has_its_arrays_behind(tmp_path: Path) -> None:
    model = trained()
    small, large = tmp_path / "small.dnn", tmp_path / "large.dnn"
    small.write_bytes(model.file("z"))
    large.write_bytes(model.large("z"))
    assert dk.inspect(large).format == "cntk/v2"
    x = w(2, 3)
    np.testing.assert_array_equal(both(small, {"x": x})[0], both(large, {"x": x})[0])
    large.write_bytes(model.large("z")[:-4])
    with pytest.raises(SourceError, match="are left"):
        both(large, {})


def test_every_operator_has_a_definition() -> None:
    assert set(EMIT) == set(COMPUTE)
    assert set(EMIT) <= set(reading_v2.OPERATORS)
    assert set(sequences.EMIT) | set(mapping.EMIT) == set(EMIT)


@pytest.mark.parametrize("op", sorted(set(reading_v2.OPERATORS) - set(EMIT) - {"Block", "Combine"}))
def test_what_has_no_form_is_named(op: str, tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3)
    model.function(op, "made", "x", name="here")
    source = Source(
        location=str(model.write(tmp_path)), format="cntk/v2", options={"outputs": "here"}
    )
    with pytest.raises(UnsupportedError, match=rf"{op} \(`here`\)") as caught:
        plugin.inspect(source)
    assert caught.value.operators == (op,)
    assert caught.value.hint


def test_refusals_that_name_the_reason(tmp_path: Path) -> None:
    x = w(2, 3, 4)
    refused: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("ReduceElements", [x], {"axis": Axis(index=0), "reductionOpName": "Median"}),
        ("ReduceElements", [x], {"axis": Axis(name="defaultBatchAxis"), "reductionOpName": "Sum"}),
        (
            "Slice",
            [x],
            {"axis": Axis(name="defaultDynamicAxis"), "beginIndex": Int(0), "endIndex": Int(1)},
        ),
        ("Pad", [x], {"paddingHead": [1, 1], "paddingFoot": [1, 1], "paddingMode": 2}),
        ("Cast", [x], {"newDataType": Int(5)}),
        ("Crop", [x, x], {}),
    ]
    for op, feeds, attributes in refused:
        with pytest.raises(UnsupportedError):
            computed(tmp_path, op, *feeds, **attributes)
    with pytest.raises(UnsupportedError, match="along its channels"):
        convolved(tmp_path, w(4, 2, 3, 3), w(1, 3, 5, 5))
    with pytest.raises(UnsupportedError, match="shares no weights"):
        convolved(tmp_path, w(4, 3, 3, 3), w(1, 3, 5, 5), sharing=[True, False, True])


def test_shapes_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not fit"):
        multiplied(tmp_path, w(5, 3), w(2, 4), outputRank=1)
    with pytest.raises(SourceError, match="do not fit together"):
        computed(tmp_path, "Plus", w(2, 3), w(2, 4))


def test_a_cycle_without_delay_is_refused(tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3)
    model.function("Plus", "a", "x", "b_Output_0")
    model.function("Tanh", "b", "a_Output_0")
    with pytest.raises(SourceError, match="without a delay"):
        both(model.write(tmp_path), {})


def test_a_user_defined_function_is_refused(tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3)
    model.function("Tanh", "made", "x", name="mine")
    model.functions[-1] |= {"type": "UserDefinedFunction", "user_function_name": "Sparsify"}
    with pytest.raises(UnsupportedError, match="Sparsify"):
        both(model.write(tmp_path), {})


def test_a_checkpoint_gives_its_model_or_says_what_it_is(tmp_path: Path) -> None:
    from tests.converters.cntk_v2_writer import dictionary

    path = tmp_path / "model.dnn"
    path.write_bytes(dictionary({"learner": {"version": 1}, "model": trained().values("z")}))
    assert both(path, {"x": w(2, 3)})[0].shape == (2, 2)
    path.write_bytes(dictionary({"learner": {"version": 1}, "rate": 0.1}))
    with pytest.raises(SourceError, match="no CNTK function") as caught:
        both(path, {})
    assert "`.ckp`" in (caught.value.hint or "")


def test_wrong_references_are_damage(tmp_path: Path) -> None:
    changes: tuple[Callable[[Model], Any], ...] = (
        lambda model: model.functions[0].update(inputs=["W", "nobody"]),
        lambda model: model.functions[0].update(op=2**40),
        lambda model: model.functions[0].update(attributes=3),
        lambda model: model.functions[0].update(uid=7),
        lambda model: model.variables[0].update(kind="input"),
        lambda model: model.variables[2].pop("value"),
        lambda model: model.variables[0].update(shape=Shape((2**63,))),
    )
    for change in changes:
        model = trained()
        change(model)
        with pytest.raises(DeploykitError):
            both(model.write(tmp_path, "z"), {})


MANY = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def inspected(path: Path) -> None:
    """Read a file; anything but a result or one of our own errors fails the test."""
    with contextlib.suppress(DeploykitError):
        plugin.inspect(Source(location=str(path), format="cntk/v2"))


WHOLE = recurrent("PastValue")[0].file()


@MANY
@given(length=st.integers(1, len(WHOLE) - 1))
def test_truncated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.dnn"
    path.unlink(missing_ok=True)
    path.write_bytes(WHOLE[:length])
    inspected(path)


@MANY
@given(data=st.data())
def test_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for at in data.draw(st.lists(st.integers(0, len(WHOLE) - 1), min_size=1, max_size=6)):
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 4]))
    path = tmp_path / "bad.dnn"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(damaged))
    inspected(path)


def test_depth_is_bounded(tmp_path: Path) -> None:
    from tests.converters.cntk_v2_writer import dictionary

    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"inputs": deep}
    path = tmp_path / "deep.dnn"
    path.write_bytes(dictionary(deep))
    with pytest.raises(SourceError, match="more than 64"):
        both(path, {})
