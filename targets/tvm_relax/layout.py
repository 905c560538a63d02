"""Convolutions with their channels last, where a CPU's vectors want them.

ONNX has the channels first. With the channels last, one vector load of weights (or of the image, in
a depthwise convolution) serves several output channels, whatever the image's size: an order of
loops for that needs no remainders. The weights are turned once, at compile time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

LAYOUTS = {
    "relax.nn.conv2d": ["NHWC", "HWIO"],
    # unnamed it would take the layout of its input, for which TVM has no code
    "relax.nn.conv2d_transpose": ["NCHW", "IOHW"],
}
"""Operator to the layouts of image and weights."""

# Those that the layout passes through, if both operands have as many axes.
ELEMENTWISE = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")


def channels_last(module: tvm.ir.IRModule) -> tvm.ir.IRModule:
    """Return `module` with its two-dimensional convolutions on channels-last images.

    Where TVM cannot turn some operator's layout, all stays as it was.
    """
    from tvm import relax
    from tvm.error import InternalError

    even = _constants_of_full_rank(module)
    try:
        return relax.transform.ConvertLayout(LAYOUTS)(even)
    except (InternalError, ValueError):
        return module


def _constants_of_full_rank(module: tvm.ir.IRModule) -> tvm.ir.IRModule:
    """Return `module` with small constants of elementwise operators broadcast by leading ones.

    The bounds of a Clip are scalars: TVM turns the image back for each operator whose operands
    differ in rank.
    """
    import tvm
    from tvm import relax

    known = {f"relax.{name}" for name in ELEMENTWISE}

    @relax.expr_functor.mutator
    class FullRank(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", None) not in known:
                return call
            ranks = [_rank(each) for each in call.args]
            most = max(ranks)
            if most != 4 or min(ranks) < 0:
                return call
            arguments = [
                _of_rank(each, most)
                if isinstance(each, tvm.ir.GenericConst) and rank < most
                else each
                for each, rank in zip(call.args, ranks, strict=True)
            ]
            return relax.Call(call.op, arguments, call.attrs)

    made = FullRank(module)
    for name, function in module.functions_items():
        if isinstance(function, relax.Function):
            made.builder_.update_func(name, made.visit_expr(function))
    return made.builder_.get()


def _rank(value: Any) -> int:
    """Return the number of axes of the value, -1 where that is unknown."""
    known = getattr(value, "ty", None) or getattr(value, "struct_info", None)
    rank = getattr(known, "ndim", -1)
    return int(rank) if rank is not None else -1


def _of_rank(constant: Any, rank: int) -> Any:
    from tvm import relax

    array = constant.value.numpy()
    return relax.const(array.reshape((1,) * (rank - array.ndim) + array.shape))
