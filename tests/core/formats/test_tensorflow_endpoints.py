"""Where graphs begin and end, on graphs written by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.formats.tensorflow_endpoints import find_endpoints
from deploykit.formats.tensorflow_graph import Graph, Node


def graph(*lines: str) -> Graph:
    """Return a graph of lines such as `y = MatMul(x, w)`."""
    nodes = {}
    for line in lines:
        name, _, call = line.partition(" = ")
        operator, _, inputs = call.removesuffix(")").partition("(")
        sources = [one.strip() for one in inputs.split(",") if one.strip()]
        nodes[name] = Node(name=name, operator=operator, inputs=sources)
    return Graph(nodes=nodes)


MODEL = (
    "x = Placeholder()",
    "w = VariableV2()",
    "w/read = Identity(w)",
    "MatMul = MatMul(x, w/read)",
)
TRAINING = ("gradients/g = Mul(loss, loss)", "train = ApplyGradientDescent(w, gradients/g)")


def test_what_nobody_reads_is_an_output_and_the_rest_of_a_training_is_not() -> None:
    found = find_endpoints(
        graph(
            *MODEL,
            "y = Softmax(MatMul)",
            "w/Assign = Assign(w, init)",
            "init = RandomUniform()",
            "save/SaveV2 = SaveV2(w)",
            "hist = HistogramSummary(w)",
            "global_step = VariableV2()",
            "rate = ExponentialDecay(global_step)",
        )
    )
    assert found.inputs == ("x",)
    assert found.outputs == ("y",)
    assert found.labels == ()


def test_a_loss_gives_way_to_what_it_compares() -> None:
    found = find_endpoints(
        graph(
            *MODEL,
            "labels = Placeholder()",
            "cost/Reshape = Reshape(MatMul, cost/shape)",
            "cost/shape = Const()",
            "cost/xent = SoftmaxCrossEntropyWithLogits(cost/Reshape, labels)",
            "loss = Mean(cost/xent)",
            "ArgMax = ArgMax(MatMul)",
            "ArgMax_1 = ArgMax(labels)",
            "Equal = Equal(ArgMax, ArgMax_1)",
            *TRAINING,
        )
    )
    assert found.labels == ("labels",)
    assert found.inputs == ("x",)
    assert found.outputs == ("MatMul",)


def test_a_node_with_a_name_of_its_own_stays_the_output() -> None:
    found = find_endpoints(
        graph(
            *MODEL,
            "labels = Placeholder()",
            "pred = Identity(MatMul)",
            "sub = Sub(pred, labels)",
            "loss = Mean(sub)",
            *TRAINING,
        )
    )
    assert found.outputs == ("pred",)


def test_a_second_input_that_joins_late_is_no_label() -> None:
    found = find_endpoints(
        graph(
            *MODEL,
            "more = Placeholder()",
            "labels = Placeholder()",
            "joined = ConcatV2(MatMul, more)",
            "v = VariableV2()",
            "logits = MatMul(joined, v)",
            "loss = SoftmaxCrossEntropyWithLogits(logits, labels)",
            *TRAINING,
        )
    )
    assert found.inputs == ("x", "more")
    assert found.outputs == ("logits",)
    assert found.labels == ("labels",)


def test_without_training_no_placeholder_is_a_label() -> None:
    found = find_endpoints(graph(*MODEL, "target = Placeholder()", "y = Sub(MatMul, target)"))
    assert found.inputs == ("x", "target")
    assert found.outputs == ("y",)


def test_outputs_that_are_named_decide_the_inputs() -> None:
    whole = graph(*MODEL, "other = Placeholder()", "y = Add(MatMul, other)")
    assert find_endpoints(whole, ["MatMul:0"]).inputs == ("x",)
    assert find_endpoints(whole, ["y"]).inputs == ("x", "other")


def test_a_placeholder_with_a_default_is_an_input_only_alone() -> None:
    both = graph("x = Placeholder()", "s = PlaceholderWithDefault(c)", "y = Mul(x, s)")
    assert find_endpoints(both).inputs == ("x",)
    alone = graph("s = PlaceholderWithDefault(c)", "y = Relu(s)")
    assert find_endpoints(alone).inputs == ("s",)


@pytest.mark.parametrize("reader", ["while/Switch = Switch(y, p)", "s = ShapeN(y)"])
def test_parts_of_loops_and_sizes_are_no_outputs(reader: str) -> None:
    name = reader.partition(" ")[0]
    assert name not in find_endpoints(graph("x = Placeholder()", "y = Relu(x)", reader)).outputs


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["Placeholder", "VariableV2", "MatMul", "Mean", "Sub", "Assign", "Exit"]
            ),
            st.lists(st.integers(0, 12), max_size=3),
        ),
        max_size=12,
    )
)
def test_any_graph_ends_even_one_that_turns_in_circles(
    nodes: list[tuple[str, list[int]]],
) -> None:
    made = Graph(
        nodes={
            f"n{at}": Node(name=f"n{at}", operator=kind, inputs=[f"n{one}" for one in sources])
            for at, (kind, sources) in enumerate(nodes)
        }
    )
    found = find_endpoints(made)
    assert set(found.inputs) | set(found.outputs) | set(found.labels) <= set(made.nodes)
