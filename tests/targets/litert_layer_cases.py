"""Small models of layers that have weights: products, normalisations, windows, recurrent ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.targets.litert_cases import CASES, IMAGE, array, case, normal, one, positive
from tests.targets.litert_worker import Nodes


def products() -> None:
    for name, left, right in (
        *(("MatMul", (2, 3, 4), (4, 5)), ("MatMul of batches", (2, 1, 3, 4), (3, 4, 5))),
        *(("MatMul of a row", (4,), (3, 4, 5)), ("MatMul of a column", (2, 3, 4), (4,))),
        *(
            ("MatMul of vectors", (4,), (4,)),
            ("MatMul of 5 axes", (2, 2, 2, 3, 4), (2, 1, 2, 4, 5)),
        ),
    ):
        one(name, "MatMul", {"x": normal(*left), "w": normal(*right)})
        one(f"{name}, constant", "MatMul", {"x": normal(*left)}, {"w": normal(*right)})
    case(
        "MatMul of a constant left",
        [("MatMul", ["w", "x"], ["y"], {})],
        {"x": normal(4, 5)},
        {"w": normal(3, 4)},
    )
    for across in (0, 1):
        more: dict[str, Any] = {"transA": across, "transB": across, "alpha": 0.5, "beta": 2.0}
        x, w = normal(3, 4), normal(4, 5)
        x, w = (x.T.copy(), w.T.copy()) if across else (x, w)
        one(f"Gemm {across}", "Gemm", {"x": x}, {"w": w, "c": normal(5)}, **more)
        one(f"Gemm of a given weight {across}", "Gemm", {"x": x, "w": w, "c": normal(3, 1)}, **more)
    for equation, rows, columns in (
        ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("ij,jk->ki", (2, 3), (3, 4)),
        ("bid,dhe->bihe", (2, 3, 4), (4, 2, 5)),
    ):
        one(
            f"Einsum {equation}",
            "Einsum",
            {"x": normal(*rows), "z": normal(*columns)},
            equation=equation,
        )


def normalisations() -> None:
    channels = {"s": normal(6), "b": normal(6), "m": normal(6), "v": positive(6)}
    two = {key: channels[key] for key in ("s", "b")}
    one("BatchNormalization", "BatchNormalization", {"x": IMAGE}, channels)
    one("InstanceNormalization", "InstanceNormalization", {"x": IMAGE}, two)
    one("GroupNormalization", "GroupNormalization", {"x": IMAGE}, two, opset=21, num_groups=3)
    rows = {"s": normal(8), "b": normal(8)}
    one("LayerNormalization", "LayerNormalization", {"x": normal(2, 3, 8)}, rows)
    whole = {"s": normal(3, 8)}
    one(
        "LayerNormalization of two axes",
        "LayerNormalization",
        {"x": normal(2, 3, 8)},
        whole,
        axis=1,
    )
    one("LRN", "LRN", {"x": IMAGE}, size=3, alpha=0.1, beta=0.6, bias=1.5)
    for p in (1, 2):
        one(f"LpNormalization {p}", "LpNormalization", {"x": IMAGE}, axis=1, p=p)
    one("MeanVarianceNormalization", "MeanVarianceNormalization", {"x": IMAGE})


def windows() -> None:
    for name, groups, out, more in (
        ("Conv", 1, 4, {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 0, 1]}),
        ("Conv depthwise", 6, 12, {"pads": [1, 1, 1, 1]}),
        ("Conv grouped", 2, 4, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Conv same", 1, 4, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ):
        weights = {"w": normal(out, 6 // groups, 3, 3), "b": normal(out)}
        one(name, "Conv", {"x": IMAGE}, weights, group=groups, **more)
    one("Conv of one axis", "Conv", {"x": normal(2, 4, 9)}, {"w": normal(3, 4, 3)}, pads=[0, 2])
    one(
        "Conv of three axes",
        "Conv",
        {"x": normal(1, 2, 5, 6, 7)},
        {"w": normal(3, 2, 2, 3, 2)},
        pads=[1] * 6,
    )
    one("Conv of a given weight", "Conv", {"x": IMAGE, "w": normal(3, 6, 3, 3)}, pads=[1] * 4)
    for name, groups, more in (
        ("ConvTranspose", 1, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        (
            "ConvTranspose same",
            1,
            {"strides": [3, 3], "kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
        ),
        ("ConvTranspose grouped", 3, {"strides": [2, 1], "dilations": [1, 2]}),
    ):
        one(
            name,
            "ConvTranspose",
            {"x": IMAGE},
            {"w": normal(6, 2, 3, 3), "b": normal(2 * groups)},
            group=groups,
            **more,
        )
    one(
        "ConvTranspose of one axis",
        "ConvTranspose",
        {"x": normal(2, 4, 9)},
        {"w": normal(4, 3, 4)},
        strides=[2],
        pads=[1, 1],
    )
    for pool in ("MaxPool", "AveragePool"):
        forms: dict[str, dict[str, Any]] = {
            "": {"strides": [2, 2]},
            " padded": {"pads": [1, 0, 1, 1]},
            " ceiled": {"strides": [2, 2], "ceil_mode": 1},
        }
        for name, more in forms.items():
            one(f"{pool}{name}", pool, {"x": IMAGE}, kernel_shape=[3, 2], opset=19, **more)
        one(f"{pool} of one axis", pool, {"x": normal(2, 4, 9)}, kernel_shape=[3], pads=[1, 1])
    one(
        "AveragePool that counts padding",
        "AveragePool",
        {"x": IMAGE},
        opset=19,
        kernel_shape=[3, 3],
        pads=[1] * 4,
        count_include_pad=1,
    )
    for pool in ("GlobalAveragePool", "GlobalMaxPool"):
        one(pool, pool, {"x": IMAGE})
    for mode in ("nearest", "linear", "cubic"):
        for place in ("half_pixel", "asymmetric", "align_corners"):
            nodes: Nodes = [
                (
                    "Resize",
                    ["x", "", "", "z"],
                    ["y"],
                    {"mode": mode, "coordinate_transformation_mode": place},
                )
            ]
            case(f"Resize {mode} {place}", nodes, {"x": IMAGE}, {"z": array(2, 6, 13, 6)})
    nodes = [("Resize", ["x", "", "s"], ["y"], {"mode": "linear"})]
    case("Resize by scales", nodes, {"x": IMAGE}, {"s": array(1, 1, 2, 0.5, dtype=np.float32)})


def recurrent() -> None:
    for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            state = {"h": normal(count, 2, 5)}
            if name == "LSTM":
                state["c"] = normal(count, 2, 5)
            weights = {
                "w": normal(count, gates * 5, 3) * 0.3,
                "r": normal(count, gates * 5, 5) * 0.3,
                "b": normal(count, 2 * gates * 5),
            }
            outputs = ["y", "last", *(["cell"] if name == "LSTM" else [])]
            more = {"linear_before_reset": int(direction == "reverse")} if name == "GRU" else {}
            nodes: Nodes = [
                (
                    name,
                    ["x", "w", "r", "b", "", *state],
                    outputs,
                    {"hidden_size": 5, "direction": direction, **more},
                )
            ]
            case(
                f"{name} {direction}",
                nodes,
                {"x": normal(4, 2, 3), **state},
                weights,
                tuple(outputs),
            )
    weights = {"w": normal(1, 20, 3) * 0.3, "r": normal(1, 20, 5) * 0.3}
    other: dict[str, Any] = {
        "hidden_size": 5,
        "activations": ["HardSigmoid", "Tanh", "Relu"],
        "activation_alpha": [0.3],
        "activation_beta": [0.4],
    }
    nodes = [("LSTM", ["x", "w", "r"], ["y"], other)]
    case("LSTM of other activations", nodes, {"x": normal(4, 2, 3)}, weights)


for fill in (products, normalisations, windows, recurrent):
    fill()

ALL = CASES
"""Every case, those of `litert_cases` too."""
