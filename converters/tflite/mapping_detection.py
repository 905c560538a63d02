"""The end of single-shot detectors: TFLite_Detection_PostProcess, a custom operator, as ONNX nodes.

Boxes are decoded around their anchors (y, x, height, width), then chosen by non-maximum
suppression: over the best class of each box, or over each class by itself (`use_regular_nms`).
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/kernels/detection_postprocess.cc
"""

from __future__ import annotations

from typing import Any

from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.flexbuffer import numbers
from deploykit._plugins.converters.tflite.mapping_elementwise import Emit
from deploykit._plugins.converters.tflite.reading import Operator, Tensor

KIND = "custom.TFLite_Detection_PostProcess"


def _column(m: Emitter, boxes: str, at: int) -> str:
    return _slice(m, boxes, at, at + 1, 1)


def _slice(m: Emitter, x: str, start: int, end: int, axis: int) -> str:
    found: str = m.add("Slice", x, m.sizes([start]), m.sizes([end]), m.sizes([axis]))
    return found


def _decoded(m: Emitter, codes: str, anchors: str, scales: dict[str, float]) -> str:
    """Return the corners [boxes, 4] (top, left, bottom, right)."""
    ends: list[tuple[str, str]] = []
    for number, axis in enumerate("yx"):
        side = "hw"[number]
        size = _column(m, anchors, 2 + number)
        shift = m.add("Div", _column(m, codes, number), m.number(scales[axis]))
        middle = m.add("Add", m.add("Mul", shift, size), _column(m, anchors, number))
        grown = m.add("Exp", m.add("Div", _column(m, codes, 2 + number), m.number(scales[side])))
        half = m.add("Mul", m.add("Mul", grown, size), m.number(0.5))
        ends.append((m.add("Sub", middle, half), m.add("Add", middle, half)))
    (top, bottom), (left, right) = ends
    found: str = m.add("Concat", top, left, bottom, right, axis=1)
    return found


def _finished(
    m: Emitter, boxes: str, classes: str, scores: str, most: int, outs: list[Tensor]
) -> list[Value]:
    """Return the four outputs, padded with zeros to `most` boxes."""
    number = m.add("Shape", scores)
    short = m.add("Sub", m.sizes([most]), number)
    after = m.add("Concat", m.sizes([0]), short, axis=0)
    square = m.add("Concat", m.sizes([0, 0]), short, m.sizes([0]), axis=0)
    parts = [
        m.add("Pad", boxes, square),
        m.add("Pad", m.add("Cast", classes, to=1), after),
        m.add("Pad", scores, after),
    ]
    shapes = [(1, most, 4), (1, most), (1, most)]
    made = [
        m.made(out, m.add("Reshape", part, m.sizes(shape)), batch=None, shape=shape)
        for out, part, shape in zip(outs, parts, shapes, strict=False)
    ]
    return [*made, m.made(outs[3], m.add("Cast", number, to=1), batch=None, shape=(1,))]


def _detections(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    import numpy as np

    codes, scores, anchors = ins
    if any(one.batch is not None for one in ins):
        raise m.fixed("chooses among the boxes of one picture")
    about = numbers(op.custom)
    most, classes = int(about["max_detections"]), int(about["num_classes"])
    regular = bool(about.get("use_regular_nms", 0))
    offset = scores.shape[2] - classes
    if not regular and about["max_classes_per_detection"] != 1:
        raise m.refuse(f"it gives {about['max_classes_per_detection']:g} classes for each box")
    if not 0 <= offset <= 1 or most < 1 or len(outs) != 4 or codes.shape[0] != 1:
        raise ValueError(f"{scores.shape[2]} scores for {classes} classes, {most} boxes")
    scales = {axis: about[f"{axis}_scale"] for axis in "yxhw"}
    flat = m.add("Reshape", m.real(codes), m.sizes(codes.shape[1:]))
    boxes = _decoded(m, flat, m.real(anchors), scales)
    given = m.add("Reshape", m.real(scores), m.sizes(scores.shape[1:]))
    given = _slice(m, given, offset, scores.shape[2], 1)
    # ONNX takes what is above the threshold, TensorFlow Lite also what is on it
    least = np.nextafter(np.float32(about["nms_score_threshold"]), np.float32(-np.inf))
    limits = [
        m.number([about["nms_iou_threshold"]]),
        m.build.constant(np.asarray([least], np.float32)),
    ]
    room = m.add("Unsqueeze", boxes, m.sizes([0]))
    if not regular:
        best = m.add("ReduceMax", given, axes=[1], keepdims=0)
        of_class = m.add("ArgMax", given, axis=1, keepdims=0)
        one = m.add("Unsqueeze", best, m.sizes([0, 1]))
        chosen = m.add("NonMaxSuppression", room, one, m.sizes([most]), *limits)
        at = m.add("Gather", chosen, m.number(2, "int64"), axis=1)
        boxes, of_class, best = (m.add("Gather", whole, at) for whole in (boxes, of_class, best))
        return _finished(m, boxes, of_class, best, most, outs)
    each = m.sizes([int(about.get("detections_per_class", 100))])
    by_class = m.add("Transpose", given, perm=[1, 0])
    one = m.add("Unsqueeze", by_class, m.sizes([0]))
    chosen = m.add("NonMaxSuppression", room, one, each, *limits)
    values = m.add("GatherND", by_class, _slice(m, chosen, 1, 3, 1))
    count = m.add("Min", m.add("Shape", values), m.sizes([most]))
    top, order = m.build.add_many("TopK", values, count, count=2, axis=0)
    chosen = m.add("Gather", chosen, order)
    of_class = m.add("Gather", chosen, m.number(1, "int64"), axis=1)
    at = m.add("Gather", chosen, m.number(2, "int64"), axis=1)
    return _finished(m, m.add("Gather", boxes, at), of_class, top, most, outs)


EMIT: dict[str, Emit] = {KIND: _detections}
