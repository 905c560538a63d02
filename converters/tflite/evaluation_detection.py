"""TFLite_Detection_PostProcess by definition: decode, suppress what overlaps, keep the best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.evaluation_call import Call, Compute
from deploykit._plugins.converters.tflite.flexbuffer import numbers

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def _overlap(boxes: Array, at: int, others: list[int]) -> Any:
    """Return intersection over union of a box with others, 0 where one has no area."""
    import numpy as np

    def area(of: Array) -> Any:
        return (of[..., 2] - of[..., 0]) * (of[..., 3] - of[..., 1])

    one, many = boxes[at], boxes[others]
    low, high = np.maximum(one[:2], many[:, :2]), np.minimum(one[2:], many[:, 2:])
    inner = np.clip(high - low, 0, None).prod(axis=1)
    empty = (area(one) <= 0) | (area(many) <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(empty, 0, inner / (area(one) + area(many) - inner))


def _kept(boxes: Array, scores: Array, most: int, about: dict[str, float]) -> list[int]:
    import numpy as np

    kept: list[int] = []
    for at in np.argsort(-scores, kind="stable"):
        if scores[at] < np.float32(about["nms_score_threshold"]) or len(kept) >= most:
            break
        if not (_overlap(boxes, int(at), kept) > about["nms_iou_threshold"]).any():
            kept.append(int(at))
    return kept


def _detections(call: Call) -> list[Array]:
    import numpy as np

    about = numbers(call.op.custom)
    codes, anchors = call.real(0)[0], call.real(2)
    classes, most = int(about["num_classes"]), int(about["max_detections"])
    scores = call.real(1)[0][:, call.stored(1).shape[2] - classes :]
    across = np.array([about["y_scale"], about["x_scale"]])
    sizes = np.array([about["h_scale"], about["w_scale"]])
    middle = codes[:, :2] / across * anchors[:, 2:] + anchors[:, :2]
    half = 0.5 * np.exp(codes[:, 2:4] / sizes) * anchors[:, 2:]
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    if about.get("use_regular_nms", 0):
        each = int(about.get("detections_per_class", 100))
        found = [
            (at, number)
            for number in range(classes)
            for at in _kept(boxes, scores[:, number], each, about)
        ]
        found = sorted(found, key=lambda one: -scores[one])[:most]
    else:
        best = scores.max(axis=1)
        found = [(at, int(scores[at].argmax())) for at in _kept(boxes, best, most, about)]
    shown = np.zeros((1, most, 4)), np.zeros((1, most)), np.zeros((1, most))
    for place, (at, number) in enumerate(found):
        shown[0][0, place], shown[1][0, place] = boxes[at], number
        shown[2][0, place] = scores[at, number]
    return [*shown, np.array([float(len(found))])]


COMPUTE: dict[str, Compute] = {"custom.TFLite_Detection_PostProcess": _detections}
