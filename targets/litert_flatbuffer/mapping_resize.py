"""Resize and Upsample: TensorFlow Lite's own operator where it samples alike, else a product.

Every mode of Resize is linear and works on each axis alone, so along one axis it is a matrix: the
result of resizing the unit vectors. TensorFlow Lite's operators
are used where their matrix is that one; else nearest neighbours are gathered by index, and anything
else is multiplied by its matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.mapping_products import fully_connected
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.values import channels_last

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Shape
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

    Array = np.ndarray[Any, Any]

SAMPLING = frozenset(
    [
        "antialias",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "mode",
        "nearest_mode",
    ]
)
LARGEST = 1 << 22
"""Elements of a matrix of one axis."""


def resize(graph: Graph, node: Node) -> None:
    """Map Resize (and Upsample, which ONNX's converter or ours turns into it)."""
    import numpy as np

    name, out = node.input(0), node.outputs[0]
    if node.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise UnsupportedError("coordinate_transformation_mode tf_crop_and_resize")
    if node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedError("keep_aspect_ratio_policy is not stretch")
    rank = graph.rank(name)
    before, after = graph.shape(name), graph.shape(out)
    scales = _scales(graph, node, rank)
    changed = [
        at
        for at in range(rank)
        if (scales.get(at, 1.0) != 1.0 if scales else before[at] != after[at])
    ]
    graph.sizes(name, changed)
    graph.sizes(out, changed)
    _refuse_ambiguous(node, before, scales)
    mode = node.attribute("mode", "nearest")
    if not changed:
        graph.values.same(out, name)
        return
    matrices = {
        at: _matrix(node, int(before[at]), int(after[at]), scales.get(at)) for at in changed
    }
    if rank == 4 and set(changed) <= {2, 3}:
        x = graph.form(name, channels_last(4))
        whole = [matrices.get(at, np.eye(int(graph.sizes(name, [at])[0]))) for at in (2, 3)]
        made = _native(graph, x, mode, whole)
        if made is not None:
            graph.put(out, made, channels_last(4))
            return
    for at, matrix in matrices.items():
        if ((matrix == 0) | (matrix == 1)).all() and (matrix.sum(1) == 1).all():
            order = graph.values.first(name)
            x = graph.form(name, order)
            place = order.index(at)
            shape = (*x.shape[:place], len(matrix), *x.shape[place + 1 :])
            where = graph.emit.constant(matrix.argmax(1), "int32")
            x = graph.emit.add("GATHER", [x, where], shape, None, "GatherOptions", axis=place)
        else:
            order = (*(axis for axis in range(rank) if axis != at), at)
            weight = graph.emit.constant(matrix.astype(np.float32))
            x = fully_connected(graph.emit, graph.form(name, order), weight)
        name = f"{out};{at}"
        graph.put(name, x, order)
    graph.values.same(out, name)


def _refuse_ambiguous(node: Node, sizes: Shape, scales: dict[int, float]) -> None:
    """Refuse corners aligned over a length that is no whole number.

    ONNX's definition takes the length as it is, ONNX Runtime the size that came of it.
    """
    if node.attribute("coordinate_transformation_mode", "half_pixel") != "align_corners":
        return
    for axis, scale in scales.items():
        size = sizes[axis]
        if scale == 1.0 or not isinstance(size, int):
            continue
        length = size * scale
        if abs(length - round(length)) > 1e-3:
            raise UnsupportedError(
                f"align_corners with a scale of {scale:g} for {size} elements: runtimes differ"
            )


def _scales(graph: Graph, node: Node, rank: int) -> dict[int, float]:
    """Return the scale of each axis where the node gives scales."""
    at = 1 if node.operator == "Upsample" or node.opset < 11 else 2
    axes = [axis % rank for axis in node.attribute("axes", range(rank))]
    found = node.attribute("scales", None)
    if found is None and node.input(at):
        found = graph.known(node, at).reshape(-1).tolist()
    return dict(zip(axes, found, strict=True)) if found else {}


def _matrix(node: Node, size: int, goal: int, scale: float | None) -> Array:
    """Return the matrix [goal, size] of the node along one axis: its unit vectors, resized.

    ONNX Runtime resizes them, whose rounding of coordinates is what other runtimes follow.
    """
    import numpy as np
    import onnx
    import onnxruntime

    if size * max(size, goal) > LARGEST:
        raise UnsupportedError(f"an axis of {size} resized to {goal}")
    attributes = {key: value for key, value in node.attributes.items() if key in SAMPLING}
    if node.operator == "Upsample" or node.opset < 11:
        # those of before opset 11 divide coordinates by the scale
        attributes["coordinate_transformation_mode"] = "asymmetric"
        attributes["nearest_mode"] = "floor" if goal >= size else "ceil"
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    asked = (
        onnx.numpy_helper.from_array(np.array([1, 1, scale, 1], np.float32), "scales")
        if scale is not None
        else onnx.numpy_helper.from_array(np.array([size, 1, goal, 1], np.int64), "sizes")
    )
    inputs = ["x", "", "scales"] if scale is not None else ["x", "", "", "sizes"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Resize", inputs, ["y"], **attributes)],
        "axis",
        [value("x", kinds.FLOAT, [size, 1, size, 1])],
        [value("y", kinds.FLOAT, [size, 1, goal, 1])],
        [asked],
    )
    opsets = [onnx.helper.make_opsetid("", max(node.opset, 13))]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    units = np.eye(size, dtype=np.float32).reshape(size, 1, size, 1)
    made: Array = session.run(None, {"x": units})[0]
    return made.reshape(size, goal).T


def _native(graph: Graph, x: Tensor, mode: str, matrices: list[Array]) -> Tensor | None:
    """Write TensorFlow Lite's operator where it computes these matrices, with some option."""
    import numpy as np

    kinds = {"nearest": "RESIZE_NEAREST_NEIGHBOR", "linear": "RESIZE_BILINEAR"}
    if mode not in kinds or x.dtype != "float32":
        return None
    for align, half in ((False, True), (False, False), (True, False)):
        if all(
            np.allclose(
                _sampled(mode, m.shape[1], m.shape[0], align=align, half=half), m, atol=1e-5
            )
            for m in matrices
        ):
            sizes = [len(matrix) for matrix in matrices]
            table = "ResizeNearestNeighborOptions" if mode == "nearest" else "ResizeBilinearOptions"
            return graph.emit.add(
                kinds[mode],
                [x, graph.emit.constant(sizes, "int32")],
                (x.shape[0], *sizes, x.shape[3]),
                None,
                table,
                alignCorners=align,
                halfPixelCenters=half,
            )
    return None


def _sampled(mode: str, size: int, goal: int, *, align: bool, half: bool) -> Array:
    """Return the matrix of TensorFlow Lite's resize along one axis.

    https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/internal/reference/resize_bilinear.h
    """
    import numpy as np

    scale = np.float32((size - 1) / (goal - 1) if align and goal > 1 else size / goal)
    at = np.arange(goal, dtype=np.float32)
    made = np.zeros((goal, size), np.float32)
    if mode == "nearest":
        place = (at + np.float32(0.5)) * scale if half else at * scale
        # a half is rounded away from zero
        index = np.floor(place + np.float32(0.5)) if align else np.floor(place)
        made[np.arange(goal), np.minimum(index.astype(int), size - 1)] = 1
        return made
    place = (at + np.float32(0.5)) * scale - np.float32(0.5) if half else at * scale
    lower = np.maximum(np.floor(place), 0).astype(int)
    upper = np.minimum(np.ceil(place), size - 1).astype(int)
    share = place - lower
    np.add.at(made, (np.arange(goal), np.minimum(lower, size - 1)), 1 - share)
    np.add.at(made, (np.arange(goal), np.maximum(upper, 0)), share)
    return made
