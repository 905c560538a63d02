"""Operators that TVM's importer writes out clumsily: our forms of them, while a model is imported.

A Clip becomes kernels that ask at run time whether a bound is NaN, and Max and Min stack their
operands to reduce them: slow, and the passes that convert precision or layout stop there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Let `from_onnx` use our converters."""
    from tvm.relax.frontend.onnx import onnx_frontend

    theirs = onnx_frontend._get_convert_map()
    changed = {
        "Clip": _clip(theirs["Clip"]),
        "Max": _pairwise(theirs["Max"]),
        "Min": _pairwise(theirs["Min"]),
    }
    with mock.patch.object(onnx_frontend, "_get_convert_map", return_value={**theirs, **changed}):
        yield


def _clip(theirs: Any) -> Any:
    class Clip(theirs):  # type: ignore[misc]
        @classmethod
        def _impl_v13(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> Any:
            from tvm import relax

            value, *bounds = [inputs[number] for number in range(3)]
            if not all(bound is None or _is_number(bound) for bound in bounds):
                return super()._impl_v13(bb, inputs, attr, params)
            for operator, bound in zip((relax.op.maximum, relax.op.minimum), bounds, strict=True):
                if bound is not None:
                    value = bb.normalize(operator(value, bound))
            return value

    return Clip


def _is_number(value: Any) -> bool:
    """Say whether the value is a constant without NaN, which a Clip takes for no bound."""
    import numpy as np
    import tvm

    if not isinstance(value, tvm.ir.GenericConst):
        return False
    array = value.value.numpy()
    return array.dtype.kind in "fiu" and not (array.dtype.kind == "f" and np.isnan(array).any())


def _pairwise(theirs: Any) -> Any:
    class Pairwise(theirs):  # type: ignore[misc]
        @classmethod
        def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, params: Any) -> Any:
            import tvm

            if all(isinstance(each, tvm.ir.GenericConst) for each in inputs):
                return super()._impl_v1(bb, inputs, attr, params)
            return cls._impl_dynamic(bb, inputs)

    return Pairwise
