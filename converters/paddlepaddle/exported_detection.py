"""Detection as paddle2onnx 2.1 exports it, put right in the graph: regions, and suppression of boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.paddlepaddle.program import input_name, results_of, top_level

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

Json = dict[str, Any]


def correct(model: onnx.ModelProto, document: Json) -> list[str]:
    """Apply every correction to `model` in place and return what was done, a line each."""
    done = []
    count = _regions(model, document)
    if count:
        done.append(f"{count} region poolings that took all regions from the first image")
    count = _background(model)
    if count:
        done.append(f"{count} suppressions that kept a box of the background")
    count = _box_counts(model)
    if count:
        done.append(f"{count} suppressions that took the unknown count of boxes for -1")
    return done


def _regions(model: onnx.ModelProto, document: Json) -> int:
    """Take each region from its own image, and place it as `aligned` says.

    paddle2onnx gives RoiAlign zeros as the numbers of images, and no way of placing.
    """
    import onnx

    operators = [op for op in top_level(document) if op["#"].endswith(".roi_align")]
    nodes = [node for node in model.graph.node if node.op_type == "RoiAlign"]
    if not operators:
        return 0
    found = [_value_name(model, document, op["I"][2]["%"]) for op in operators]
    names = [name for name in found if name is not None]
    if not len(nodes) == len(operators) == len(names):
        raise UnsupportedError(
            "paddle2onnx exports pd_op.roi_align for one image only", operators=("pd_op.roi_align",)
        )
    make = onnx.helper.make_node
    for number, (op, node, counts) in enumerate(zip(operators, nodes, names, strict=True)):
        stem = f"region_images.{number}"
        for key, value in (("axis", 0), ("one", 1)):
            shape = [] if key == "axis" else [1]
            tensor = onnx.helper.make_tensor(
                f"{stem}.{key}", onnx.TensorProto.INT64, shape, [value]
            )
            model.graph.initializer.append(tensor)
        # the image of a region is the count of images whose regions end at or before it
        before = [
            make("Cast", [counts], [f"{stem}.counts"], to=onnx.TensorProto.INT64),
            make("CumSum", [f"{stem}.counts", f"{stem}.axis"], [f"{stem}.ends"]),
            make("Shape", [node.input[1]], [f"{stem}.shape"]),
            make("Gather", [f"{stem}.shape", f"{stem}.axis"], [f"{stem}.regions"]),
            make("Squeeze", [f"{stem}.one"], [f"{stem}.step"]),
            make(
                "Range",
                [f"{stem}.axis", f"{stem}.regions", f"{stem}.step"],
                [f"{stem}.places"],
            ),
            make("Unsqueeze", [f"{stem}.places", f"{stem}.one"], [f"{stem}.rows"]),
            make("GreaterOrEqual", [f"{stem}.rows", f"{stem}.ends"], [f"{stem}.passed"]),
            make("Cast", [f"{stem}.passed"], [f"{stem}.ones"], to=onnx.TensorProto.INT64),
            make("ReduceSum", [f"{stem}.ones", f"{stem}.one"], [stem], keepdims=0),
        ]
        for part in before:
            part.name = part.output[0]
        node.input[2] = stem
        if not any(item["N"] == "aligned" and item["AT"]["D"] for item in op["A"]):
            attribute = node.attribute.add()
            attribute.CopyFrom(
                onnx.helper.make_attribute("coordinate_transformation_mode", "output_half_pixel")
            )
        at = next(i for i, one in enumerate(model.graph.node) if one.output[0] == node.output[0])
        for part in reversed(before):
            model.graph.node.insert(at, part)
    return len(operators)


def _background(model: onnx.ModelProto) -> int:
    """Choose the boxes that are not background by their row alone.

    paddle2onnx looks for them in a column, so that column numbers count as rows too.
    """
    made = {name: node for node in model.graph.node for name in node.output}
    count = 0
    for node in model.graph.node:
        if node.op_type != "NonZero" or not node.output[0].startswith("nms.filter_background"):
            continue
        flat = [
            one.output[0]
            for one in model.graph.node
            if one.op_type == "Squeeze" and one.input[0] == node.input[0]
        ]
        if flat and made[node.input[0]].op_type == "Gather":
            node.input[0] = flat[0]
            count += 1
    return count


def _box_counts(model: onnx.ModelProto) -> int:
    """Let the places of scores follow from the count of boxes where only a run tells it.

    paddle2onnx writes the count down as it is in the program: -1 where it is not known.
    """
    import onnx
    from onnx import numpy_helper

    made = {name: node for node in model.graph.node for name in node.output}
    count = 0
    for node in list(model.graph.node):
        if node.op_type != "Mul":
            continue
        factor, chosen = made.get(node.input[1]), made.get(node.input[0])
        if factor is None or chosen is None or factor.op_type != "Constant":
            continue
        suppression: onnx.NodeProto | None = chosen
        while suppression is not None and suppression.op_type == "Gather":
            suppression = made.get(suppression.input[0])
        if suppression is None or suppression.op_type != "NonMaxSuppression":
            continue
        if numpy_helper.to_array(factor.attribute[0].t).tolist() != [-1]:
            continue
        stem = f"{suppression.output[0]}.boxes"
        last = onnx.helper.make_tensor(f"{stem}.axis", onnx.TensorProto.INT64, [1], [2])
        model.graph.initializer.append(last)
        at = next(i for i, one in enumerate(model.graph.node) if one.output[0] == node.output[0])
        for part in (
            onnx.helper.make_node("Gather", [f"{stem}.shape", f"{stem}.axis"], [stem], name=stem),
            onnx.helper.make_node(
                "Shape", [suppression.input[1]], [f"{stem}.shape"], name=f"{stem}.shape"
            ),
        ):
            model.graph.node.insert(at, part)
        node.input[1] = stem
        count += 1
    return count


def _value_name(model: onnx.ModelProto, document: Json, number: int) -> str | None:
    """Return what the exported graph calls the value `number`; None where it does not have it."""
    graph = model.graph
    known = {name for node in graph.node for name in node.output}
    known |= {value.name for value in graph.input}
    seen: dict[str, int] = {}
    for op in top_level(document):
        kind = op["#"].partition(".")[2]
        for index, result in enumerate(results_of(op)):
            if result["%"] != number:
                continue
            is_input = op["#"].endswith((".data", ".feed"))
            name = input_name(op) if is_input else f"p2o.pd_op.{kind}.{seen.get(kind, 0)}.{index}"
            return name if name in known else None
        seen[kind] = seen.get(kind, 0) + 1
    return None
