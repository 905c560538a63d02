"""What every target must keep to: the same real ONNX models through compile, load and run.

Values are checked against onnx's own reference implementation, in a fresh process, because what
a payload forgot is still in the memory of the process that wrote it.
"""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from packaging.requirements import Requirement

from deploykit import plugins
from deploykit.errors import UnsupportedError, UsageError
from deploykit.onnx_file import signature_of
from deploykit.plugins import Plugin
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    from_json,
    to_json,
)
from deploykit.requirements import unmet
from deploykit.tensors import read_tensors, write_tensors

Feed = dict[str, "np.ndarray[Any, Any]"]
ROOT = Path(__file__).resolve().parents[2]
BASE = {"numpy", "onnx", "onnxruntime"}

FRESH = """
import importlib, json, sys
root, module, job = sys.argv[1:]
sys.path.insert(0, root)
from pathlib import Path
from deploykit.protocol import LoadRequest, from_json
from deploykit.tensors import read_tensors, write_tensors
request = from_json(LoadRequest, json.loads(Path(job, "request.json").read_text()))
session = importlib.import_module(module).load(request)
write_tensors(Path(job, "out.npz"), session.run(read_tensors(Path(job, "in.npz"))))
session.close()
"""

FRESH_COMPILE = """
import importlib, json, sys
root, module, job = sys.argv[1:]
sys.path.insert(0, root)
from pathlib import Path
from deploykit.protocol import CompileRequest, from_json
request = from_json(CompileRequest, json.loads(Path(job, "request.json").read_text()))
importlib.import_module(module).compile(request)
"""


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    feeds: tuple[Feed, ...]


def _model(graph: onnx.GraphProto, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _weights(seed: int, **shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    source = np.random.default_rng(seed)
    return [
        numpy_helper.from_array(source.normal(0, 0.3, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def convolution() -> Case:
    """An image classifier as older exporters wrote it: every weight is listed as an input too."""
    weights = _weights(
        1,
        w1=(8, 3, 3, 3),
        scale=(8,),
        bias=(8,),
        mean=(8,),
        w2=(16, 8, 1, 1),
        w3=(10, 16),
        b3=(10,),
    )
    weights.append(numpy_helper.from_array(np.full(8, 1.5, np.float32), "variance"))
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c1", "scale", "bias", "mean", "variance"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"]),
        helper.make_node("Sigmoid", ["c2"], ["s2"]),
        helper.make_node("GlobalAveragePool", ["s2"], ["g2"]),
        helper.make_node("Flatten", ["g2"], ["f2"]),
        helper.make_node("Gemm", ["f2", "w3", "b3"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 24, 20])]
        + [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [2, 10]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 10]),
        ],
        weights,
    )
    image = np.random.default_rng(2).normal(size=(2, 3, 24, 20)).astype(np.float32)
    return Case("convolution", _model(graph, opset=15, ir_version=3), ({"image": image},))


def attention() -> Case:
    """Token ids and a mask of dynamic sizes; a float and an integer output."""
    weights = _weights(3, table=(32, 16), q=(16, 16), k=(16, 16), v=(16, 16))
    weights += [
        numpy_helper.from_array(np.array(-1e4, np.float32), "low"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "q"], ["xq"]),
        helper.make_node("MatMul", ["x", "k"], ["xk"]),
        helper.make_node("MatMul", ["x", "v"], ["xv"]),
        helper.make_node("Transpose", ["xk"], ["xkt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["xq", "xkt"], ["scores"]),
        helper.make_node("Where", ["mask", "zero", "low"], ["penalty"]),
        helper.make_node("Unsqueeze", ["penalty", "one"], ["penalties"]),
        helper.make_node("Add", ["scores", "penalties"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "xv"], ["mixed"]),
        helper.make_node("ReduceMean", ["mixed"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("ArgMax", ["pooled"], ["best"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", "length"]),
        ],
        [
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 16]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["batch"]),
        ],
        weights,
    )
    source = np.random.default_rng(4)
    feeds = []
    for shape in ((2, 7), (1, 3)):
        mask = source.random(shape) < 0.7
        mask[:, 0] = True
        feeds.append({"ids": source.integers(0, 32, shape), "mask": mask})
    return Case("attention", _model(graph), tuple(feeds))


def oddities() -> Case:
    """Strange names, a scalar, an input that is an output, one that nobody reads."""
    nodes = [
        helper.make_node("Mul", ["onnx::x.0", "factor"], ["a/b:0"]),
        helper.make_node("Cast", ["a/b:0"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Identity", ["onnx::x.0"], ["same"]),
        helper.make_node("ReduceSum", ["a/b:0"], ["total"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "oddities",
        [
            helper.make_tensor_value_info("unread", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("onnx::x.0", TensorProto.FLOAT, [3, 4]),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("wide", TensorProto.INT32, [3, 4]),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, [3, 4]),
            helper.make_tensor_value_info("a/b:0", TensorProto.FLOAT, [3, 4]),
        ],
    )
    feed: Feed = {
        "unread": np.zeros(2, np.float32),
        "onnx::x.0": np.arange(12, dtype=np.float32).reshape(3, 4) / 4,
        "factor": np.array(3, np.float32),
    }
    return Case("oddities", _model(graph), (feed,))


CASES: dict[str, Callable[[], Case]] = {
    "convolution": convolution,
    "attention": attention,
    "oddities": oddities,
}


def _in_base(plugin: Plugin) -> bool:
    """Whether the target needs nothing but what deploykit itself does."""
    return {Requirement(each).name for each in plugin.dependencies} <= BASE


TARGETS = [
    pytest.param(
        plugin,
        id=plugin.name,
        marks=[] if _in_base(plugin) else [pytest.mark.environment],
    )
    for plugin in plugins.plugins("target")
    if not unmet(plugin, isolated=False)
]
"""Those whose packages are here; `test_targets_apart.py` runs the others where theirs are."""

TENSORS_OF_SOME = ("attention", "oddities")
"""The cases with integer outputs and scalars, which some targets refuse: not for an operator."""

every_target = pytest.mark.parametrize("plugin", TARGETS)
every_case = pytest.mark.parametrize("case", CASES)


def _module(plugin: Plugin) -> Any:
    missing = _missing_here(plugin.module, plugin.devices[0])
    if missing and not _in_base(plugin):
        pytest.skip(f"not on this machine: {missing}")
    return importlib.import_module(plugin.module)


@functools.cache
def _missing_here(module: str, device: str) -> str:
    """Return what `device` needs that this machine lacks, such as a browser or a GPU."""
    found = {each.device: each for each in importlib.import_module(module).probe()}
    return "" if found[device].available else found[device].detail or "no reason given"


def _compile(plugin: Plugin, case: Case, folder: Path, **changes: Any) -> CompileResult:
    """Compile through JSON both ways, as a worker would."""
    model = folder / "model.onnx"
    onnx.save(case.model, model)
    payload = folder / "payload"
    payload.mkdir()
    request = CompileRequest(
        model=str(model),
        payload=str(payload),
        signature=signature_of(case.model),
        device=plugin.devices[0],
        threads=1,
    )
    request = from_json(
        CompileRequest, json.loads(json.dumps(to_json(replace(request, **changes))))
    )
    try:
        result: CompileResult = _module(plugin).compile(request)
    except UnsupportedError as error:
        if case.name not in TENSORS_OF_SOME or error.operators:
            raise
        pytest.skip(error.message)
    model.unlink()  # a payload stands on its own
    return from_json(CompileResult, json.loads(json.dumps(to_json(result))))


def _load_request(plugin: Plugin, result: CompileResult, folder: Path) -> LoadRequest:
    return LoadRequest(
        payload=str(folder / "payload"),
        signature=result.signature,
        device=plugin.devices[0],
        threads=1,
        settings=result.settings,
    )


def _expected(case: Case, feed: Feed) -> Feed:
    evaluator = ReferenceEvaluator(case.model)
    return dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))


def _assert_same(actual: Feed, expected: Feed) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].shape == value.shape, name
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@every_target
def test_probe_tells_every_declared_device(plugin: Plugin) -> None:
    found = _module(plugin).probe()
    assert all(isinstance(each, Availability) for each in found)
    assert {each.device for each in found} == set(plugin.devices)
    first = next(each for each in found if each.device == plugin.devices[0])
    assert first.available, first.detail
    assert first.versions


@every_target
@every_case
def test_values_in_a_fresh_process(plugin: Plugin, case: str, tmp_path: Path) -> None:
    made = CASES[case]()
    result = _compile(plugin, made, tmp_path)
    request = _load_request(plugin, result, tmp_path)
    (tmp_path / "request.json").write_text(json.dumps(to_json(request)))
    write_tensors(tmp_path / "in.npz", made.feeds[0])
    subprocess.run(
        [sys.executable, "-c", FRESH, str(ROOT), plugin.module, str(tmp_path)],
        check=True,
        timeout=120,
    )
    actual = read_tensors(tmp_path / "out.npz")
    _assert_same(actual, _expected(made, made.feeds[0]))


@every_target
@every_case
def test_signature_keeps_names_order_and_dtypes(plugin: Plugin, case: str, tmp_path: Path) -> None:
    made = CASES[case]()
    result = _compile(plugin, made, tmp_path)
    model = signature_of(made.model)
    for mine, theirs in (
        (result.signature.inputs, model.inputs),
        (result.signature.outputs, model.outputs),
    ):
        assert [(spec.name, spec.dtype) for spec in mine] == [
            (spec.name, spec.dtype) for spec in theirs
        ]
        for spec, original in zip(mine, theirs, strict=True):
            assert spec.shape is not None
            assert original.shape is not None
            fixed = [size for size in original.shape if isinstance(size, int)]
            assert [
                s for s, o in zip(spec.shape, original.shape, strict=True) if isinstance(o, int)
            ] == fixed


@every_target
@every_case
def test_runs_and_bound_runs_agree(plugin: Plugin, case: str, tmp_path: Path) -> None:
    made = CASES[case]()
    result = _compile(plugin, made, tmp_path)
    session = _module(plugin).load(_load_request(plugin, result, tmp_path))
    for feed in made.feeds:
        if any(
            isinstance(size, int) and size != feed[spec.name].shape[axis]
            for spec in result.signature.inputs
            for axis, size in enumerate(spec.shape or ())
        ):
            assert result.notes, "sizes were fixed, and no note says so"
            continue
        expected = _expected(made, feed)
        first = session.run(feed)
        _assert_same(first, expected)
        bound = session.bind(feed)
        bound()
        bound()
        _assert_same(bound.outputs(), expected)
        # what a run returned is the caller's: later runs leave it alone, and it may be written to
        other = {name: np.zeros_like(array) for name, array in feed.items()}
        other.update({name: ~array for name, array in other.items() if array.dtype == bool})
        session.run(other)
        _assert_same(first, expected)
        for array in first.values():
            array[...] = 0
        _assert_same(session.run(feed), expected)
        _assert_same(bound.outputs(), expected)
    session.close()


@every_target
def test_inputs_may_be_read_only_or_strided(plugin: Plugin, tmp_path: Path) -> None:
    made = convolution()
    result = _compile(plugin, made, tmp_path)
    session = _module(plugin).load(_load_request(plugin, result, tmp_path))
    strided = np.asfortranarray(made.feeds[0]["image"])
    strided.flags.writeable = False
    expected = _expected(made, made.feeds[0])
    _assert_same(session.run({"image": strided}), expected)
    bound = session.bind({"image": strided.copy()})  # held by nobody else: the session must
    bound()
    _assert_same(bound.outputs(), expected)


@every_target
def test_sizes_can_be_fixed(plugin: Plugin, tmp_path: Path) -> None:
    made = attention()
    result = _compile(plugin, made, tmp_path, shapes={"ids": (2, 7)})
    assert [spec.shape for spec in result.signature.inputs] == [(2, 7), (2, 7)]
    assert result.signature.outputs[0].shape == (2, 16)
    session = _module(plugin).load(_load_request(plugin, result, tmp_path))
    _assert_same(session.run(made.feeds[0]), _expected(made, made.feeds[0]))


@every_target
@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"idz": (2, 7)}, "ids, mask"),
        ({"ids": (2, 7, 1)}, "2 axes"),
        ({"ids": (2, 7), "mask": (3, 7)}, "batch"),
    ],
)
def test_wrong_sizes_are_refused(
    plugin: Plugin, shapes: dict[str, tuple[int, ...]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        _compile(plugin, attention(), tmp_path, shapes=shapes)
    assert said in raised.value.message + raised.value.hint


@every_target
def test_an_unknown_setting_is_refused_with_the_known_ones(plugin: Plugin, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        _compile(plugin, convolution(), tmp_path, settings={"no_such_setting": "1"})
    assert "no_such_setting" in raised.value.message
    for name in plugin.settings:
        assert name in raised.value.hint


@every_target
def test_the_settings_in_force_are_those_declared(plugin: Plugin, tmp_path: Path) -> None:
    result = _compile(plugin, convolution(), tmp_path)
    assert set(result.settings) == set(plugin.settings)


@every_target
def test_an_unknown_precision_is_refused(plugin: Plugin, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="fp12"):
        _compile(plugin, convolution(), tmp_path, precision="fp12")


@every_target
def test_an_unknown_operator_is_named(plugin: Plugin, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Fictitious", ["x"], ["y"], domain="example.invented")],
        "unknown",
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.invented", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    case = Case("unknown", model, ())
    with pytest.raises(UnsupportedError) as raised:
        _compile(plugin, case, tmp_path)
    assert any("Fictitious" in name for name in raised.value.operators)
    assert plugin.name in raised.value.message


@every_target
def test_the_same_input_gives_the_same_payload(plugin: Plugin, tmp_path: Path) -> None:
    _module(plugin)
    # ONNX Runtime makes up other names in each process for nodes of its processor-bound layout
    settings = {"optimization": "extended"} if "optimization" in plugin.settings else {}
    made = convolution()
    onnx.save(made.model, tmp_path / "model.onnx")
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        request = CompileRequest(
            model=str(tmp_path / "model.onnx"),
            payload=str(folder),
            signature=signature_of(made.model),
            device=plugin.devices[0],
            threads=1,
            settings=settings,
        )
        (tmp_path / "request.json").write_text(json.dumps(to_json(request)))
        # as in a worker: names that a compiler makes up count on from the last model it saw
        subprocess.run(
            [sys.executable, "-c", FRESH_COMPILE, str(ROOT), plugin.module, str(tmp_path)],
            check=True,
            timeout=120,
        )
    contents = [
        {path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in folders
    ]
    assert list(contents[0]) == list(contents[1])
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []


@every_target
@every_case
def test_the_newest_opset_that_a_target_declares_computes_right(
    plugin: Plugin, case: str, tmp_path: Path
) -> None:
    assert plugin.newest_opset is not None
    made = CASES[case]()
    newer = onnx.version_converter.convert_version(made.model, plugin.newest_opset)
    made = replace(made, model=newer)
    request = _load_request(plugin, _compile(plugin, made, tmp_path), tmp_path)
    session = _module(plugin).load(request)
    _assert_same(session.run(made.feeds[0]), _expected(made, made.feeds[0]))
    session.close()
