"""What paddle2onnx 2.1 computes otherwise than the program says, put right in the exported graph.

It takes the approximate GELU for the exact one, gives the states of the last recurrent layer for
those of all, and passes over sequence lengths; see also `exported_detection.py`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.paddlepaddle import exported_detection, exported_pooling
from deploykit._plugins.converters.paddlepaddle.program import (
    every_operation,
    input_name,
    results_of,
    top_level,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

Json = dict[str, Any]

CHANNELS_FIRST = ("batch_norm", "group_norm", "prelu", "pixel_shuffle")
RECURRENT = ("LSTM", "GRU")


def refuse(document: Json) -> None:
    """Raise UnsupportedError for the forms of an operator that would be exported as another."""
    outer = {id(op) for op in top_level(document)}
    for op in every_operation(document):
        name = op["#"].partition(".")[2]
        if not name:
            continue  # a parameter
        layout = _attribute(op, "data_format")
        if name.removesuffix("_") in CHANNELS_FIRST and layout in ("NHWC", "NDHWC", "NLC"):
            raise UnsupportedError(
                f"paddle2onnx exports pd_op.{name} of data_format {layout} as if channels came first",
                operators=(f"pd_op.{name}",),
                hint="build the model with channels first (NCHW)",
            )
        if name == "multiclass_nms3" and _many_images(document, op):
            raise UnsupportedError(
                "paddle2onnx exports pd_op.multiclass_nms3 for one image only",
                operators=("pd_op.multiclass_nms3",),
                hint="fix the batch of every input, for example --input image:float32[1,3,640,640]",
            )
        if name.startswith("gelu") and id(op) not in outer and _attribute(op, "approximate"):
            raise UnsupportedError(
                "paddle2onnx exports pd_op.gelu with approximate=True in a branch or loop as the exact one",
                operators=("pd_op.gelu",),
            )
        if name == "p_norm" and _attribute(op, "porder") in (None, math.inf, -math.inf):
            raise UnsupportedError(
                "paddle2onnx cannot export pd_op.p_norm of infinite order",
                operators=("pd_op.p_norm",),
                hint="write it as the maximum of absolute values",
            )
        if not op["#"].endswith(".rnn"):
            continue
        mode = _attribute(op, "mode")
        if mode not in RECURRENT:
            raise UnsupportedError(
                f"paddle2onnx has no mapping for pd_op.rnn of mode {mode} (nn.SimpleRNN)",
                operators=("pd_op.rnn",),
                hint="nn.LSTM and nn.GRU have one",
            )
        if _has_lengths(op) and (id(op) not in outer or _input_behind(document, op) is None):
            raise UnsupportedError(
                "paddle2onnx cannot export pd_op.rnn with sequence lengths that are computed inside",
                operators=("pd_op.rnn",),
                hint="make the lengths an input of the model",
            )


def correct(model: onnx.ModelProto, document: Json) -> list[str]:
    """Apply every correction to `model` in place and return what was done, a line each."""
    done = []
    count = _approximate_gelus(model, document)
    if count:
        done.append(f"{count} GELUs exported as exact, now by tanh as the program has them")
    count = _lengths(model, document)
    if count:
        done.append(f"{count} recurrent layers given the sequence lengths that were left out")
    count = _states(model)
    if count:
        done.append(f"{count} final states of the last recurrent layer, now of all layers")
    done += exported_pooling.correct(model, document)
    done += exported_detection.correct(model, document)
    return done


def _approximate_gelus(model: onnx.ModelProto, document: Json) -> int:
    """`0.5 x (1 + erf(x / sqrt(2)))` becomes `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`."""
    import onnx

    gelus = [op for op in top_level(document) if op["#"].endswith((".gelu", ".gelu_"))]
    if not any(_attribute(op, "approximate") for op in gelus):
        return 0
    made = {name: node for node in model.graph.node for name in node.output}
    found = [
        (node, made[node.input[0]])
        for node in model.graph.node
        if node.op_type == "Erf"
        and node.input[0] in made
        and made[node.input[0]].op_type == "Div"
        and _is_root_of_two(made.get(made[node.input[0]].input[1]))
    ]
    if len(found) != len(gelus):
        raise UnsupportedError(
            f"paddle2onnx exports pd_op.gelu with approximate=True as the exact one, and {len(found)} "
            f"of it are found where the program has {len(gelus)}",
            operators=("pd_op.gelu",),
        )
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for number, (op, (erf, divided)) in enumerate(zip(gelus, found, strict=True)):
        if not _attribute(op, "approximate"):
            continue
        x, stem = divided.input[0], f"gelu_by_tanh.{number}"
        kind = {"t_f16": 10, "t_f64": 11, "t_bf16": 16}.get(_dtype(op), 1)
        parts = []
        for name, value in (("cubic", 0.044715), ("root", math.sqrt(2 / math.pi))):
            tensor = onnx.helper.make_tensor(f"{stem}.{name}", kind, [], [value])
            model.graph.initializer.append(tensor)
        for kind_of, inputs, output in (
            ("Mul", [x, x], "square"),
            ("Mul", [f"{stem}.square", x], "cube"),
            ("Mul", [f"{stem}.cube", f"{stem}.cubic"], "part"),
            ("Add", [x, f"{stem}.part"], "sum"),
            ("Mul", [f"{stem}.sum", f"{stem}.root"], "scaled"),
        ):
            parts.append(
                onnx.helper.make_node(
                    kind_of, inputs, [f"{stem}.{output}"], name=f"{stem}.{output}"
                )
            )
        parts.append(onnx.helper.make_node("Tanh", [f"{stem}.scaled"], [erf.output[0]], name=stem))
        replaced[erf.name] = parts
    nodes = [part for node in model.graph.node for part in replaced.get(node.name, [node])]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return len(replaced)


def _is_root_of_two(node: onnx.NodeProto | None) -> bool:
    from onnx import numpy_helper

    if node is None or node.op_type != "Constant":
        return False
    value = numpy_helper.to_array(node.attribute[0].t)
    return bool(value.size == 1 and abs(float(value.reshape(())) - math.sqrt(2)) < 1e-2)


def _lengths(model: onnx.ModelProto, document: Json) -> int:
    """Give the lengths to all layers of the recurrent operators that have them."""
    import onnx

    operators = [op for op in top_level(document) if op["#"].endswith(".rnn")]
    chains = _chains(model)
    count = 0
    if not any(_has_lengths(op) for op in operators):
        return 0
    if len(chains) != len(operators):
        raise UnsupportedError(
            "paddle2onnx leaves the sequence lengths of pd_op.rnn out", operators=("pd_op.rnn",)
        )
    for number, (op, chain) in enumerate(zip(operators, chains, strict=True)):
        if not _has_lengths(op):
            continue
        lengths = f"sequence_lengths.{number}"
        cast = onnx.helper.make_node(
            "Cast",
            [_input_behind(document, op) or ""],
            [lengths],
            name=lengths,
            to=onnx.TensorProto.INT32,
        )
        for layer in chain:
            layer.input[4] = lengths
            count += 1
        model.graph.node.insert(0, cast)
    return count


def _states(model: onnx.ModelProto) -> int:
    """Join the states of all layers, in their order, where those of the last stand for all."""
    import onnx

    read = {name for node in model.graph.node for name in node.input}
    read |= {value.name for value in model.graph.output}
    count = 0
    for chain in _chains(model):
        if len(chain) < 2:
            continue
        for index in range(1, len(chain[-1].output)):
            last = chain[-1].output[index]
            for node in list(model.graph.node):
                result = node.output[0] if node.output else ""
                state = re.fullmatch(r"p2o\.pd_op\.rnn\.\d+\.2_\d", result)
                if list(node.input) == [last] and state and result in read:
                    joined = onnx.helper.make_node(
                        "Concat",
                        [layer.output[index] for layer in chain],
                        [result],
                        name=f"states.{result}",
                        axis=0,
                    )
                    node.CopyFrom(joined)
                    count += 1
    return count


def _chains(model: onnx.ModelProto) -> list[list[onnx.NodeProto]]:
    """Return the layers of each recurrent operator: one reads the other's output, reshaped."""
    made = {name: node for node in model.graph.node for name in node.output}
    chains: list[list[onnx.NodeProto]] = []
    for node in model.graph.node:
        if node.op_type not in RECURRENT:
            continue
        reshaped = made.get(node.input[0])
        # `helper.`: within one operator, for a value of the program has a name of its own
        inside = reshaped is not None and reshaped.op_type == "Reshape"
        if inside and reshaped is not None and reshaped.output[0].startswith("helper."):
            turned = made.get(reshaped.input[0])
            before = made.get(turned.input[0]) if turned is not None else None
            if chains and before is not None and before.output[0] == chains[-1][-1].output[0]:
                chains[-1].append(node)
                continue
        chains.append([node])
    return chains


def _many_images(document: Json, op: Json) -> bool:
    """Whether `op` may get boxes of more than one image."""
    boxes = op["I"][0]["%"]
    results = [result for one in every_operation(document) for result in results_of(one)]
    kinds = [result["TT"].get("D") for result in results if result["%"] == boxes]
    if kinds and kinds[0] and kinds[0][1][:1] == [1]:
        return False
    return any(
        op["O"][0]["TT"]["D"][1][:1] != [1]
        for op in top_level(document)
        if op["#"].endswith((".data", ".feed"))
    )


def _has_lengths(op: Json) -> bool:
    return len(op["I"]) > 3 and op["I"][3]["%"] != 0


def _input_behind(document: Json, op: Json) -> str | None:
    """Return the input of the model whose values are the lengths of `op`, cast or as they are."""
    producers = {result["%"]: one for one in top_level(document) for result in results_of(one)}
    source = producers.get(op["I"][3]["%"])
    while source is not None and source["#"].endswith(".cast"):
        source = producers.get(source["I"][0]["%"])
    if source is None or not source["#"].endswith((".data", ".feed")):
        return None
    return input_name(source)


def _attribute(op: Json, name: str) -> Any:
    return next((item["AT"].get("D") for item in op["A"] if item["N"] == name), None)


def _dtype(op: Json) -> str:
    kind = op["O"][0]["TT"]
    return str(kind["D"][0]["#"]).rpartition(".")[2] if kind["#"].endswith(".t_dtensor") else ""
