"""What paddle2onnx 2.1 misreads in a PIR document of Paddle 3.3, rewritten into what it understands.

Each repair keeps the meaning of the program, changes the document in place, and says in one line
what it did.
"""

from __future__ import annotations

from typing import Any

from deploykit._plugins.converters.paddlepaddle.program import every_operation, results_of

Json = dict[str, Any]

INTERPOLATIONS = ("linear", "bilinear", "trilinear", "nearest", "bicubic")
REDUCTIONS = ("sum", "mean", "max", "min", "prod", "amax", "amin", "any", "all")


def mend(document: Json) -> list[str]:
    """Apply every repair to `document` and return what was done, a line each."""
    done = []
    for repair, line in (
        (_narrow_scales, "{} interpolation scales from double, as Paddle 3.3 has them, to float"),
        (_keep_sliced_axis, "{} slices of old programs that kept the axis they were to drop"),
        (_name_reduced_axes, "{} reductions over all axes, now named one by one"),
    ):
        count = repair(document)
        if count:
            done.append(line.format(count))
    return done


def interpolation_scales(document: Json) -> list[list[Json]]:
    """Return, per interpolation that has them, its `scale` attributes of type double."""
    found = []
    for op in every_operation(document):
        if _name(op) in {f"{mode}_interp" for mode in INTERPOLATIONS}:
            attribute = _attribute(op, "scale")
            values = attribute["D"] if attribute else []
            wide = [v for v in values if isinstance(v, dict) and v["#"].endswith(".a_f64")]
            if wide:
                found.append(wide)
    return found


def _narrow_scales(document: Json) -> int:
    """paddle2onnx reads `scale` of interpolations as floats only; Paddle 3.3 made them doubles."""
    found = interpolation_scales(document)
    for scale in found:
        for item in scale:
            item["#"] = item["#"].replace("a_f64", "a_f32")
    return len(found)


def _keep_sliced_axis(document: Json) -> int:
    """Before Paddle 2.5 there were no scalars: a slice that drops its last axis still gave `[1]`.

    Translated programs say both, `decrease_axis` and the type `[1]`; the exporter follows the
    first where later operators need the second.
    """
    count = 0
    for op in every_operation(document):
        if _name(op) not in ("slice", "strided_slice"):
            continue
        dropped = _attribute(op, "decrease_axis")
        kind = op["O"][0]["TT"]
        if not dropped or not dropped["D"] or not kind["#"].endswith(".t_dtensor"):
            continue
        source = _shape_of(document, op["I"][0]["%"])
        if source is not None and len(source) == len(dropped["D"]) and kind["D"][1] == [1]:
            # the axes all have one element left, so keeping one of them gives the same value
            dropped["D"] = dropped["D"][1:]
            count += 1
    return count


def _name_reduced_axes(document: Json) -> int:
    """paddle2onnx aborts at an empty list of axes, which in Paddle means all of them."""
    count = 0
    producers = {result["%"]: op for op in every_operation(document) for result in results_of(op)}
    for op in every_operation(document):
        if _name(op) not in REDUCTIONS or len(op["I"]) < 2:
            continue
        axes = producers.get(op["I"][1]["%"])
        shape = _shape_of(document, op["I"][0]["%"])
        if axes is None or _name(axes) != "full_int_array" or not shape:
            continue
        value = _attribute(axes, "value")
        if value is None or value["D"]:
            continue
        value["D"] = [{"#": "0.a_i64", "D": axis} for axis in range(len(shape))]
        axes["O"][0]["TT"]["D"][1] = [len(shape)]
        count += 1
    return count


def _name(op: Json) -> str:
    return str(op["#"]).partition(".")[2]


def _attribute(op: Json, name: str) -> Json | None:
    return next((item["AT"] for item in op["A"] if item["N"] == name), None)


def _shape_of(document: Json, value: int) -> list[int] | None:
    for op in every_operation(document):
        for result in results_of(op):
            if result["%"] == value and result["TT"]["#"].endswith(".t_dtensor"):
                dims: list[int] = result["TT"]["D"][1]
                return dims
    return None
