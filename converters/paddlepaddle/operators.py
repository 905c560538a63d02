"""Which operators of a PIR program paddle2onnx has no mapping for.

It aborts on them without naming any. Its own list has the names of Paddle 2, so those that Paddle 3
changed are translated (from `paddle/phi/ops/yaml/op_compat.yaml`).
"""

from __future__ import annotations

from typing import Any

from deploykit._plugins.converters.paddlepaddle.program import every_operation

STRUCTURE = {"data", "feed", "fetch", "shadow_output", "if", "while", "yield"}
"""Handled by the exporter itself."""

NAMES_OF_PADDLE_2 = {
    "add": "elementwise_add",
    "add_n": "sum",
    "all": "reduce_all",
    "any": "reduce_any",
    "arange": "range",
    "argmax": "arg_max",
    "argmin": "arg_min",
    "divide": "elementwise_div",
    "expand": "expand_v2",
    "flatten": "flatten_contiguous_range",
    "floor_divide": "elementwise_floordiv",
    "grid_sample": "grid_sampler",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_swish",
    "matmul": "matmul_v2",
    "max": "reduce_max",
    "maximum": "elementwise_max",
    "mean": "reduce_mean",
    "min": "reduce_min",
    "minimum": "elementwise_min",
    "multiply": "elementwise_mul",
    "nonzero": "where_index",
    "prod": "reduce_prod",
    "remainder": "elementwise_mod",
    "subtract": "elementwise_sub",
    "sum": "reduce_sum",
    "topk": "top_k_v2",
    "unsqueeze": "unsqueeze2",
}


def without_mapping(document: dict[str, Any], supported: set[str]) -> tuple[str, ...]:
    """Return the operators of `document` that are not in `supported`, the exporter's own list."""
    missing = set()
    for op in every_operation(document):
        dialect, _, name = op["#"].partition(".")
        if dialect != "1" or name in STRUCTURE:
            continue
        # a trailing underscore means in place
        plain = name.removesuffix("_")
        if not {name, plain, NAMES_OF_PADDLE_2.get(plain, plain)} & supported:
            missing.add(f"pd_op.{name}")
    return tuple(sorted(missing))
