"""CNTK v1 files of every model version: what is read, what is made of it, damage refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploykit._plugins.converters.cntk import reading_v1, v1_file
from deploykit._plugins.converters.cntk.graph import Graph, Node

from deploykit.errors import SourceError, UnsupportedError
from tests.converters import cntk_v1_writer as v1
from tests.converters.cntk_v1_writer import File

RANDOM = np.random.default_rng(5)
VERSIONS = range(1, 28)


def w(*shape: int) -> Any:
    """Return an array in numpy's order: the reverse of CNTK's."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def read(tmp_path: Path, content: bytes) -> Graph:
    path = tmp_path / "model.dnn"
    path.write_bytes(content)
    return reading_v1.read(path)


def by_op(graph: Graph, op: str) -> Node:
    (found,) = [node for node in graph.nodes if node.op == op]
    return found


def values(graph: Graph, uid: str) -> Any:
    leaf = graph.leaves[uid]
    assert leaf.values is not None
    assert leaf.shape == leaf.values.shape[::-1]
    return leaf.values


def layer(version: int, precision: str = "float", **sections: Any) -> tuple[bytes, Any]:
    """Return sigmoid(W x + b) with a label and two criteria, and W as a matrix."""
    weight = w(3, 2)
    file = File(version, precision)
    file.input("x", 3)
    file.input("y", 2)
    file.parameter("W", weight)
    file.parameter("b", w(1, 2))
    file.times("Wx", "W", "x")
    file.node("Plus", "z", "Wx", "b")
    file.node("Sigmoid", "p", "z")
    file.node("CrossEntropyWithSoftmax", "ce", "y", "z")
    file.node("ErrorPrediction", "err", "y", "z")
    given_sections = {"feature": ("x",), "label": ("y",), "criterion": ("ce",), **sections}
    given_sections.setdefault("evaluation", ("err",))
    given_sections.setdefault("output", ("p",))
    return file.bytes(**given_sections), weight.T


@pytest.mark.parametrize("version", VERSIONS)
def test_a_layer_of_every_version(tmp_path: Path, version: int) -> None:
    content, weight = layer(version)
    graph = read(tmp_path, content)
    assert graph.version == version
    assert [(root.name, root.uid) for root in graph.roots] == [("p", "p")]
    assert graph.repairs == ("left out: ce, err, which only training needs",)
    x = graph.leaves["x"]
    # before version 3 every input is an image, of one channel and width 1 here
    assert x.shape == ((1, 1, 3) if version < 3 else (3,))
    assert (x.values, x.batch, x.sequence, x.sparse) == (None, True, "", False)
    assert x.dtype == "float32"
    product = by_op(graph, "Times")
    assert product.inputs[1] == "x"
    left = values(graph, product.inputs[0])
    np.testing.assert_array_equal(left.reshape(3, 2).T, weight)
    if version < 3:  # the matrix multiplies an image: its columns are taken apart
        assert graph.leaves[product.inputs[0]].shape == (2, 1, 1, 3)
    criterion = by_op(graph, "CrossEntropyWithSoftmax")
    assert criterion.inputs == ("z", "y")
    assert by_op(graph, "Plus").shape == (2, 1)


@pytest.mark.parametrize(("version", "precision"), [(5, "double"), (7, "double"), (25, "half")])
def test_precision_is_that_of_the_nodes_or_of_their_matrices(
    tmp_path: Path, version: int, precision: str
) -> None:
    content, weight = layer(version, precision)
    graph = read(tmp_path, content)
    found = graph.leaves["W"]
    assert found.dtype == {"double": "float64", "half": "float16"}[precision]
    np.testing.assert_allclose(values(graph, "W").T, weight, rtol=1e-3)
    assert graph.leaves["x"].dtype == found.dtype


def test_an_initial_state_has_the_precision_of_the_file(tmp_path: Path) -> None:
    """It comes before the first matrix here, and is as wide as that one's elements."""
    file = File(5, "double")
    file.delay("PastValue", "before", "h", 2, initial=0.25)
    file.node("Plus", "h", file.input("x", 2), "before")
    file.parameter("W", w(2, 3))
    file.times("o", "W", "h")
    graph = read(tmp_path, file.bytes(output=("o",)))
    assert values(graph, "before/initial") == np.float64(0.25)
    assert graph.leaves["x"].dtype == "float64"


def test_older_names_of_sections(tmp_path: Path) -> None:
    content, _ = layer(2, legacy_names=True)
    assert read(tmp_path, content).repairs


@pytest.mark.parametrize("labelled", [True, False])
def test_without_outputs_what_the_criteria_judge_is_one(tmp_path: Path, labelled: bool) -> None:
    content, _ = layer(12, output=(), label=("y",) if labelled else ())
    graph = read(tmp_path, content)
    assert [root.name for root in graph.roots] == ["z"]
    assert "names no output" in graph.repairs[0]


def test_without_outputs_and_criteria_the_last_operators_are(tmp_path: Path) -> None:
    file = File(12)
    file.node("Tanh", "t", file.input("x", 4))
    file.node("Exp", "e", "t")
    file.node("Abs", "a", "t")
    graph = read(tmp_path, file.bytes())
    assert [root.name for root in graph.roots] == ["e", "a"]
    alone = File(12)
    alone.input("x", 4)
    with pytest.raises(SourceError, match="names no output"):
        read(tmp_path, alone.bytes())


def test_names_that_v2_wrapped(tmp_path: Path) -> None:
    file = File(21)
    name = "__v2libuid__Input5__v2libname__picture"
    file.input(name, 4, axis="*")
    file.node("Tanh", "__v2libuid__Tanh7__v2libname__", name)
    graph = read(tmp_path, file.bytes(output=("__v2libuid__Tanh7__v2libname__",)))
    assert [root.name for root in graph.roots] == ["Tanh7"]
    assert graph.leaves[name].name == "picture"
    assert graph.names["picture"] == name


@pytest.mark.parametrize(
    ("version", "state"),
    [(15, b""), (16, v1.u4(3) + v1.u8(4)), (16, v1.u8(3, 4)), (17, v1.u8(3, 4)), (27, v1.u8(3, 4))],
)
def test_the_seed_of_dropout_has_two_sizes(tmp_path: Path, version: int, state: bytes) -> None:
    file = File(version)
    file.input("x", 3)
    file.node("Dropout", "d", "x", payload=state)
    file.node("Tanh", "t", "d")
    graph = read(tmp_path, file.bytes(output=("t",)))
    assert by_op(graph, "Dropout").inputs == ("x",)
    assert by_op(graph, "Tanh").shape == (3,)


@pytest.mark.parametrize("by_column", [True, False])
@pytest.mark.parametrize("index", ["<i4", "<i8"])
def test_sparse_matrices(tmp_path: Path, by_column: bool, index: str) -> None:
    dense = np.where(RANDOM.random((5, 7)) < 0.3, RANDOM.random((5, 7)), 0).astype(np.float32)
    dense[:, 2] = 0
    dense[3] = 0
    file = File(12)
    body = v1.f4(0) + v1.shape(5, 7) + v1.sparse(dense, by_column=by_column, index=index)
    file.node("LearnableParameter", "W", payload=body)
    file.node("Tanh", "t", "W")
    found = values(read(tmp_path, file.bytes(output=("t",))), "W")
    np.testing.assert_array_equal(found.T, dense)


def test_an_empty_sparse_matrix(tmp_path: Path) -> None:
    file = File(12)
    body = v1.f4(0) + v1.shape(2, 3) + v1.sparse(np.zeros((2, 3)))
    file.node("LearnableParameter", "W", payload=body)
    file.node("Tanh", "t", "W")
    assert not values(read(tmp_path, file.bytes(output=("t",))), "W").any()


def test_parameters_of_old_files_that_are_tensors(tmp_path: Path) -> None:
    """Zero rows say that a shape follows, whose last axis may stand in the columns."""
    kernel = w(2, 4, 3)
    file = File(2)
    flat = kernel.reshape(2, 12).T
    body = v1.truth(True) + v1.u8(0, 2) + v1.shape(3, 4) + v1.matrix(flat)
    file.node("LearnableParameter", "W", payload=body)
    file.node("Tanh", "t", "W")
    graph = read(tmp_path, file.bytes(output=("t",)))
    assert graph.leaves["W"].shape == (3, 4, 2)
    np.testing.assert_array_equal(values(graph, "W"), kernel)


@pytest.mark.parametrize("version", [2, 3, 4, 12])
@pytest.mark.parametrize("op", ["PastValue", "FutureValue", "Delay"])
def test_recurrences_make_inputs_sequences(tmp_path: Path, version: int, op: str) -> None:
    file = File(version)
    file.input("x", 4)
    file.delay(op, "before", "h", 4, initial=0.25)
    file.node("Plus", "sum", "x", "before")
    file.node("Tanh", "h", "sum")
    graph = read(tmp_path, file.bytes(output=("h",)))
    assert graph.leaves["x"].sequence == "sequence"
    kind = "FutureValue" if op == "FutureValue" else "PastValue"
    delay = by_op(graph, kind)
    assert delay.inputs[0] == "h"
    assert delay.attributes["offset"] == 1
    assert delay.shape == ((1, 1, 4) if version < 3 else (4,))
    assert values(graph, delay.inputs[1]) == np.float32(0.25)


def test_the_first_version_keeps_no_initial_state(tmp_path: Path) -> None:
    file = File(1)
    file.input("x", 4)
    file.delay("Delay", "before", "h", 4)
    file.node("Plus", "h", "x", "before")
    graph = read(tmp_path, file.bytes(output=("h",)))
    assert values(graph, by_op(graph, "PastValue").inputs[1]) == np.float32(0.1)


@pytest.mark.parametrize(
    ("axis", "sequence"), [("", "sequence"), ("*", "sequence"), ("__defaultNoSequenceAxis__", "")]
)
def test_dynamic_axes(tmp_path: Path, axis: str, sequence: str) -> None:
    file = File(14)
    file.node("DynamicAxis", "time")
    file.input("x", 4, axis=axis)
    file.input("y", 4, axis="time", op="SparseInputValue")
    file.delay("PastValue", "before", "y", 4)
    graph = read(tmp_path, file.bytes(output=("before",)))
    assert graph.leaves["x"].sequence == sequence
    assert (graph.leaves["y"].sequence, graph.leaves["y"].sparse) == ("time", True)
    assert "time" not in graph.leaves


@pytest.mark.parametrize(
    ("version", "payload", "expected"),
    [
        (2, v1.i8(1, 3), {"axis": 0, "beginIndex": 1, "endIndex": 4, "sliceStrides": 1}),
        (3, v1.i8(0, 2) + v1.i4(2), {"axis": 1, "beginIndex": 0, "endIndex": 2}),
        (22, v1.i4(1) + v1.i8(-2, 2) + v1.i4(1), {"axis": 0, "beginIndex": -2, "endIndex": 0}),
        (
            27,
            v1.i4(1) + v1.i8(0, 4) + v1.i4(1, 2),
            {"axis": 0, "beginIndex": 0, "endIndex": 4, "sliceStrides": 2},
        ),
    ],
)
def test_slices(tmp_path: Path, version: int, payload: bytes, expected: dict[str, int]) -> None:
    file = File(version)
    file.node("RowSlice" if version == 2 else "Slice", "s", "W", payload=payload)
    file.parameter("W", w(3, 5))
    graph = read(tmp_path, file.bytes(output=("s",)))
    found = by_op(graph, "Slice")
    assert found.attributes["axis"].index == expected.pop("axis")
    assert {key: found.attributes[key] for key in expected} == expected


@pytest.mark.parametrize("inner", [0x10001, 0x10002, 0x10003, 0x10004])
def test_normalization_that_kept_the_inverse_deviation(tmp_path: Path, inner: int) -> None:
    file = File(5)
    inverse = np.abs(w(1, 3)) + 0.5
    file.input("x", 4, 4, 3)
    for name in ("scale", "bias", "mean"):
        file.parameter(name, w(1, 3))
    file.parameter("deviation", inverse)
    names = ("x", "scale", "bias", "mean", "deviation")
    file.normalization("n", *names, spatial=True, epsilon=0.125, inner=inner)
    graph = read(tmp_path, file.bytes(output=("n",)))
    found = by_op(graph, "BatchNormalization")
    epsilon = 0.125 if inner >= 0x10003 else 1e-5
    assert found.attributes == {"spatial": True, "epsilon": epsilon}
    assert [graph.leaves[uid].shape for uid in found.inputs[1:]] == [(3,)] * 4 + [(1,)]
    variance = values(graph, found.inputs[4])
    np.testing.assert_allclose(variance, (1 / inverse**2 + epsilon)[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("version", "flag", "more"),
    [
        *((version, False, b"") for version in (6, 12, 13, 18, 20, 27)),
        (19, True, b""),
        (24, True, b""),
        (28, False, b"\1"),
        (28, True, b"\0"),
    ],
)
def test_normalization_since(tmp_path: Path, version: int, flag: bool, more: bytes) -> None:
    file = File(version)
    file.input("x", 3, 2)
    names = [file.parameter(name, np.full((1, 6), 2.0)) for name in ("s", "b", "m", "v")]
    if version >= 19:
        names.append(file.parameter("count", np.zeros(1)))
    file.normalization("n", "x", *names, spatial=False, epsilon=0.5, flag=flag, more=more)
    graph = read(tmp_path, file.bytes(output=("n",)))
    found = by_op(graph, "BatchNormalization")
    variance = 2 if version >= 13 else 0.25 + 0.5
    np.testing.assert_array_equal(values(graph, found.inputs[4]), np.full((2, 3), variance))


def test_a_matrix_is_the_kernel_of_a_convolution(tmp_path: Path) -> None:
    """Its numbers lie as those of a kernel do, whatever rows and columns say."""
    kernel = w(4, 3, 2, 2)
    file = File(12)
    file.input("x", 5, 5, 3)
    file.parameter("W", kernel, 4, 12)
    window = file.window((2, 2, 1), (1, 1, 4), (1, 1, 1))
    file.convolution("c", "W", "x", window, two_axes=True)
    graph = read(tmp_path, file.bytes(output=("c",)))
    found = by_op(graph, "Convolution")
    assert graph.leaves[found.inputs[0]].shape == (2, 2, 3, 4)
    np.testing.assert_array_equal(values(graph, found.inputs[0]), kernel)
    assert found.attributes["strides"] == (1, 1, 3)
    assert found.shape == (4, 4, 4)


@pytest.mark.parametrize(("version", "groups"), [(26, 1), (28, 1), (30, 2)])
def test_groups_and_what_else_came_late(tmp_path: Path, version: int, groups: int) -> None:
    file = File(version)
    file.input("x", 5, 5, 4)
    file.parameter("W", w(6, 4 // groups, 3, 3))
    window = file.window((3, 3, 4 // groups), (6,), (1, 1, 4 // groups))
    payload = window + v1.truth(False) + v1.shape(1) + (v1.u8(groups) if version > 28 else b"")
    file.node("Convolution", "c", "W", "x", payload=payload)
    file.node("Tanh", "t", "c")
    graph = read(tmp_path, file.bytes(output=("t",)))
    assert by_op(graph, "Convolution").attributes["groups"] == groups
    assert by_op(graph, "Tanh").shape == (3, 3, 6)


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        ("UserDefinedV2Function", b""),
        ("Trace", v1.text("message")),
        ("LatticeSequenceWithSoftmax", v1.text("path")),
    ],
)
def test_an_unknown_payload_ends_the_reading_by_name(
    tmp_path: Path, op: str, payload: bytes
) -> None:
    file = File(12)
    file.input("x", 3)
    file.node(op, "odd", "x", payload=payload)
    with pytest.raises(UnsupportedError, match=rf"{op} \(`odd`\)") as caught:
        read(tmp_path, file.bytes(output=("odd",)))
    assert caught.value.operators == (op,)
    assert caught.value.hint


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="model version 31"):
        read(tmp_path, File(31).bytes())


REFUSED: dict[str, Callable[[File], str]] = {
    "Slice(along time)": lambda f: f.node(
        "Slice", "o", f.input("x", 3), payload=v1.i8(0, 1) + v1.i4(-1)
    ),
    "MaxPooling(of channels first and unequal sides)": lambda f: f.old_pooling(
        "MaxPooling", "o", f.input("x", 3, 6, 4), 2, 2, 0
    ),
    "EnvironmentInput(elsewhere)": lambda f: f.node(
        "EnvironmentInput", "o", payload=v1.text("elsewhere")
    ),
    "InvStdDev(not computed yet: train the model first)": lambda f: f.node(
        "InvStdDev", "o", f.input("x", 3), payload=v1.truth(False) + v1.matrix(np.zeros((3, 1)))
    ),
    "KhatriRaoProduct": lambda f: f.node("KhatriRaoProduct", "o", f.input("x", 3), "x"),
    "RowRepeat(of more than a vector)": lambda f: f.node(
        "RowRepeat", "o", f.input("x", 3, 2), payload=v1.u8(2)
    ),
}


@pytest.mark.parametrize("op", REFUSED)
def test_what_has_no_counterpart_keeps_a_name_of_its_own(tmp_path: Path, op: str) -> None:
    file = File(12)
    REFUSED[op](file)
    graph = read(tmp_path, file.bytes(output=("o",)))
    assert by_op(graph, op).outputs == ("o",)


def test_shapes_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    file = File(12)
    file.parameter("W", w(3, 2))
    file.times("t", "W", file.input("x", 4))
    with pytest.raises(SourceError, match="multiplies the shapes"):
        read(tmp_path, file.bytes(output=("t",)))


def test_payloads_know_every_operator_that_is_translated() -> None:
    from deploykit._plugins.converters.cntk import v1_nodes, v1_operators

    assert {*v1_operators.SPECIAL, *v1_operators.RENAMED, *v1_operators.ALIKE} <= set(
        v1_nodes.PAYLOADS
    )


def test_a_cursor_tells_the_old_image_shape(tmp_path: Path) -> None:
    cursor = v1_file.Cursor(memoryview(v1.u8(7, 5, 3) + v1.shape(7, 5, 3)))
    assert cursor.shape(legacy=True) == (3, 7, 5)
    assert cursor.shape(legacy=True) == (7, 5, 3)
