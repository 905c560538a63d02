"""Conversions that succeed, and every way in which one must not."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import deploykit as dk
from deploykit import _plugins, errors, plugins, runs
from deploykit.errors import MismatchError, OutputError, PluginError, StepTimeout, UsageError
from deploykit.tensors import write_tensors


def convert(model: Path, output: Path, do: str = "honest", **more: object) -> dk.Conversion:
    source = dk.SourceOptions(settings={"do": do})
    return dk.convert(model, output, source=source, **more)  # type: ignore[arg-type]


def test_a_proven_model(odd_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    conversion = convert(odd_model, output)
    assert conversion.verified
    assert conversion.cases > 3, "several seeds and several sizes of the dynamic axis"
    assert conversion.output == str(output)
    assert [str(spec) for spec in conversion.signature.inputs] == ["x:float32[batch,4]"]
    assert [(p.output, p.ok) for p in conversion.parity] == [("y", True)]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x * 2 + 1)
    text = json.dumps(conversion.to_json(), allow_nan=False)
    assert json.loads(text)["format"] == "coreml/mlmodel"


@pytest.mark.parametrize("do", ["wrong", "wrong5", "nan"])
def test_what_disagrees_is_not_written(odd_model: Path, tmp_path: Path, do: str) -> None:
    output = tmp_path / "out.onnx"
    with pytest.raises(MismatchError, match="`y`"):
        convert(odd_model, output, do)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_an_older_file_survives_a_failure(odd_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"what was there before")
    with pytest.raises(PluginError, match="fails late"):
        convert(odd_model, output, "fails")
    assert output.read_bytes() == b"what was there before"
    convert(odd_model, output)
    assert output.read_bytes() != b"what was there before"


def test_the_proof_can_be_given_up_but_is_then_not_claimed(odd_model: Path, tmp_path: Path) -> None:
    checks = dk.Checks(enabled=False)
    conversion = convert(odd_model, tmp_path / "out.onnx", "wrong", checks=checks)
    assert (conversion.verified, conversion.cases, conversion.parity) == (False, 0, ())


def test_a_wide_tolerance_lets_a_difference_pass(odd_model: Path, tmp_path: Path) -> None:
    checks = dk.Checks(tolerance=dk.Tolerance(atol=2, rtol=2))
    conversion = convert(odd_model, tmp_path / "out.onnx", "wrong", checks=checks)
    assert conversion.parity[0].max_abs_error > 0.1


def test_sizes_that_the_source_rejects_are_noted(odd_model: Path, tmp_path: Path) -> None:
    conversion = convert(odd_model, tmp_path / "out.onnx", "rejects2")
    assert any("batch=2" in note and "rejects" in note for note in conversion.notes)


def test_a_size_that_the_source_accepts_is_found(odd_model: Path, tmp_path: Path) -> None:
    conversion = convert(odd_model, tmp_path / "out.onnx", "stride32")
    assert conversion.verified
    assert conversion.cases >= 3


def test_no_size_at_all(odd_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none of the sizes") as caught:
        convert(odd_model, tmp_path / "out.onnx", "none")
    assert "--sample" in caught.value.hint


def test_the_users_own_inputs(odd_model: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample.npz"
    write_tensors(sample, {"x": np.ones((5, 4), np.float32)})
    conversion = convert(odd_model, tmp_path / "a.onnx", checks=dk.Checks(sample=sample))
    assert conversion.cases == 1
    with pytest.raises(MismatchError, match=r"sample\.npz"):
        convert(odd_model, tmp_path / "b.onnx", "wrong5", checks=dk.Checks(sample=sample))


def test_weights_beside_the_model_come_along(odd_model: Path, tmp_path: Path) -> None:
    convert(odd_model, tmp_path / "out.onnx", "external")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"]
    )
    x = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x + 1)


def test_the_time_limit(odd_model: Path, tmp_path: Path) -> None:
    conditions = dk.Conditions(limits=dk.Limits(timeout_s=1.5))
    with pytest.raises(StepTimeout) as caught:
        convert(odd_model, tmp_path / "out.onnx", "sleeps", conditions=conditions)
    assert caught.value.phase == "tracing"
    assert not (tmp_path / "out.onnx").exists()


def test_a_folder_as_output(odd_model: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder"):
        convert(odd_model, tmp_path)


def test_weights_beside_an_onnx_source_are_read(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    onnx.save(
        onnx.load(small_onnx),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="net.bin",
        size_threshold=0,
    )
    dk.convert(tmp_path / "net.onnx", tmp_path / "out.onnx", checks=dk.Checks(seeds=1))
    # the source is gone: nothing of it is needed any more
    (tmp_path / "net.bin").unlink()
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    found, expected = (
        onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
        for path in (tmp_path / "out.onnx", small_onnx)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_model_may_be_converted_onto_itself(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    model = tmp_path / "net.onnx"
    shutil.copy(small_onnx, model)
    made = dk.convert(model, model, source=dk.SourceOptions(opset=20), checks=dk.Checks(seeds=1))
    assert made.source_sha256 == hashlib.sha256(small_onnx.read_bytes()).hexdigest()
    assert onnx.load(model).opset_import[0].version == 20


def test_a_relative_output_is_in_the_current_folder(
    odd_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = dk.convert(odd_model, "out.onnx", checks=dk.Checks(enabled=False))
    assert made.output == str(tmp_path / "out.onnx")
    assert Path("out.onnx").is_file()


def test_another_file_system_gets_a_whole_copy(odd_model: Path, odd_plugins: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == odd_plugins.stat().st_dev:
        pytest.skip("there is no second file system here")
    folder = other / f"deploykit-{odd_plugins.parent.name}-{odd_model.parent.parent.name}"
    folder.mkdir()
    try:
        made = convert(odd_model, folder / "out.onnx", "external", checks=dk.Checks(enabled=False))
        assert sorted(path.name for path in folder.iterdir()) == ["out.onnx", "out.onnx.data"]
        assert len(onnx.load(made.output).graph.initializer) == 2
    finally:
        shutil.rmtree(folder)


def test_nobody_converts_to_the_same_file_meanwhile(odd_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with (
        runs.resumable(["convert", output], resume=False),
        pytest.raises(errors.UsageError, match="another deploykit"),
    ):
        convert(odd_model, output)


def test_a_format_without_a_converter(
    odd_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plugins, "__path__", [str(_plugins.ROOT)])  # the odd converter is gone
    with pytest.raises(errors.UnsupportedError, match=r"coreml/mlmodel.*no converter") as caught:
        convert(odd_model, tmp_path / "out.onnx")
    assert "pytorch/exported_program" in caught.value.hint


def test_a_failed_conversion_can_be_run_again(odd_model: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.PluginError, match="fails late") as caught:
        convert(odd_model, tmp_path / "out.onnx", "fails")
    assert caught.value.phase == "tracing"
    assert caught.value.frame.startswith("converters/odd_source.py:")
    script = Path(caught.value.log).with_name("reproduce.sh")
    again = subprocess.run([script], capture_output=True, text=True, timeout=60, check=False)
    assert "RuntimeError: fails late" in again.stdout


def test_the_newest_opset_of_the_targets_or_the_converters_own(
    small_onnx: Path, odd_model: Path, tmp_path: Path
) -> None:
    newest = plugins.target("openvino").newest_opset
    assert newest is not None
    wish = dk.SourceOptions(for_targets=("openvino", "onnxruntime"))
    assert dk.convert(small_onnx, tmp_path / "a.onnx", source=wish).opset == newest
    # an opset that the user asks for goes first
    asked = dk.SourceOptions(for_targets=("openvino",), opset=18)
    assert dk.convert(small_onnx, tmp_path / "b.onnx", source=asked).opset == 18


def test_needless_nodes_go_unless_they_shall_stay(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    nodes = [
        onnx.helper.make_node("Identity", ["x"], ["i"]),
        onnx.helper.make_node("Relu", ["i"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(nodes, "g", [value("x", kind, ["n"])], [value("y", kind, ["n"])])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    tidied = dk.convert(path, tmp_path / "out.onnx")
    assert [node.op_type for node in onnx.load(tidied.output).graph.node] == ["Relu"]
    assert tidied.notes == ("cleaned up: 2 nodes became 1",)
    as_it_was = dk.convert(path, tmp_path / "raw.onnx", source=dk.SourceOptions(tidy=False))
    assert len(onnx.load(as_it_was.output).graph.node) == 2
    assert as_it_was.notes == ()
