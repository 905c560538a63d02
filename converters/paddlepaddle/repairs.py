"""What paddle2onnx 2.1 misreads in a PIR document of Paddle 3.3, rewritten into what it understands.

Each repair keeps the meaning of the program, changes the document in place, and says in one line
what it did.
"""

from __future__ import annotations

import copy
from typing import Any

from deploykit._plugins.converters.paddlepaddle.program import (
    every_block,
    every_operation,
    results_of,
)

Json = dict[str, Any]

INTERPOLATIONS = ("linear", "bilinear", "trilinear", "nearest", "bicubic")
DOUBLES = {
    "leaky_relu": ("negative_slope",),
    "group_norm": ("epsilon",),
    "pad3d": ("pad_value",),
    "softplus": ("beta", "threshold"),
}
NUMBERS = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
REDUCTIONS = ("sum", "mean", "max", "min", "prod", "amax", "amin", "any", "all")


def mend(document: Json) -> list[str]:
    """Apply every repair to `document` and return what was done, a line each."""
    done = []
    for repair, line in (
        (_narrow_scales, "{} interpolation scales from double, as Paddle 3.3 has them, to float"),
        (_narrow_numbers, "{} attributes from double, as Paddle 3.3 has them, to float"),
        (_clip_between, "{} hardtanh with limits of their own, now a clip between them"),
        (_expand_to_sizes, "{} expand_as to sizes known at run time, now expand to those"),
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


def _narrow_numbers(document: Json) -> int:
    """paddle2onnx reads these as floats: of a double it takes half the bytes, and computes with that."""
    count = 0
    for op in every_operation(document):
        for name in DOUBLES.get(_name(op).removesuffix("_"), ()):
            attribute = _attribute(op, name)
            if attribute is not None and attribute["#"].endswith(".a_f64"):
                attribute["#"] = attribute["#"].replace("a_f64", "a_f32")
                count += 1
    return count


def _clip_between(document: Json) -> int:
    """paddle2onnx takes -1 and 1 for the limits of every `hardtanh`."""
    count = 0
    values = [result["%"] for op in every_operation(document) for result in results_of(op)]
    fresh = max(values, default=0) + 1
    for block in every_block(document):
        for op in list(block):
            if _name(op).removesuffix("_") != "hardtanh":
                continue
            limits = [_attribute(op, name) for name in ("t_min", "t_max")]
            if None in limits:
                continue
            dtype = op["O"][0]["TT"]["D"][0]
            short = dtype["#"].rpartition(".t_")[2]
            dialect = op["#"].partition(".")[0]
            at = next(number for number, one in enumerate(block) if one is op)
            for limit in limits:
                attributes = {
                    "shape": ("1.a_intarray", [1]),
                    "value": ("0.a_f64", limit["D"] if limit else 0.0),
                    "dtype": ("1.a_dtype", NUMBERS.get(short, "float32")),
                    "place": ("1.a_place", [1, 0, ""]),
                }
                full = {
                    "#": f"{dialect}.full",
                    "A": [{"N": n, "AT": {"#": k, "D": v}} for n, (k, v) in attributes.items()],
                    "I": [],
                    "O": [
                        {
                            "%": fresh,
                            "TT": {"#": "0.t_dtensor", "D": [dict(dtype), [1], "NCHW", [], 0]},
                        }
                    ],
                    "OA": copy.deepcopy(op.get("OA", [])),
                }
                op["I"] = [*op["I"], {"%": fresh}]
                block.insert(at, full)
                fresh += 1
                at += 1
            op["#"] = f"{dialect}.clip"
            op["A"] = [item for item in op["A"] if item["N"] not in ("t_min", "t_max")]
            count += 1
    return count


def _expand_to_sizes(document: Json) -> int:
    """paddle2onnx takes the sizes of `expand_as` from its attribute, also those that are -1."""
    count = 0
    values = [result["%"] for op in every_operation(document) for result in results_of(op)]
    fresh = max(values, default=0) + 1
    for block in every_block(document):
        at = 0
        while at < len(block):
            op = block[at]
            at += 1
            sizes = _attribute(op, "target_shape") if _name(op) == "expand_as" else None
            if sizes is None or len(op["I"]) < 2 or op["I"][1]["%"] == 0:
                continue
            if all(size["D"] >= 0 for size in sizes["D"]):
                continue
            kind = {"#": "0.t_dtensor", "D": [{"#": "0.t_i64"}, [len(sizes["D"])], "NCHW", [], 0]}
            shape = {
                "#": op["#"].replace("expand_as", "shape64"),
                "A": [],
                "I": [op["I"][1]],
                "O": [{"%": fresh, "TT": kind}],
                "OA": copy.deepcopy(op.get("OA", [])),
            }
            op["#"] = op["#"].replace("expand_as", "expand")
            op["I"] = [op["I"][0], {"%": fresh}]
            op["A"] = [item for item in op["A"] if item["N"] != "target_shape"]
            block.insert(at - 1, shape)
            fresh += 1
            at += 1
            count += 1
    return count


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
