"""The shapes of the nodes of a CNTK v1 network, which its files do not keep.

As CNTK infers them when it loads a model: the `Validate` functions of its nodes. Shapes are
column-major, without dynamic axes; a node whose shape is not known has None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from deploykit._plugins.converters.cntk.v1_file import Network, RawNode

from deploykit.formats.reading import FormatError

Shape = tuple[int, ...]
Known = Mapping[str, Shape | None]
Rule = Callable[[RawNode, Sequence[Shape]], Shape | None]

DELAYS = ("PastValue", "FutureValue", "Delay")


def inferred(network: Network) -> dict[str, Shape | None]:
    """Return the shape of every node. Raises FormatError where the shapes do not fit together."""
    order = _order(network)
    shapes: dict[str, Shape | None] = {}
    # before version 4 delays keep no shape but a number of rows: at first, others say what they know
    for partial in (network.version < 4, False, False):
        for name in order:
            node = network.nodes[name]
            shapes[name] = _shape(node, shapes, partial, columns=network.version < 3)
    return shapes


def _order(network: Network) -> list[str]:
    """Return the names of the nodes, inputs first; delays come before what they delay."""
    found: dict[str, None] = {}
    for start in network.nodes:
        work = [(start, False)]
        open_: set[str] = set()
        while work:
            name, left = work.pop()
            if left:
                open_.discard(name)
                found[name] = None
                continue
            if name in found or name in open_:
                continue
            open_.add(name)
            work.append((name, True))
            node = network.nodes[name]
            if node.op not in DELAYS:
                work += [(one, False) for one in node.inputs if one not in found]
    return list(found)


def _shape(node: RawNode, shapes: Known, partial: bool, *, columns: bool) -> Shape | None:
    if node.op in DELAYS:
        before = shapes.get(node.inputs[0]) if node.inputs else None
        kept: Shape = node.fields["shape"]
        return before or (kept if math.prod(kept) and not partial else None)
    if "shape" in node.fields and not node.inputs:
        own: Shape = node.fields["shape"]
        return own
    rule = RULES.get(node.op)
    given = [shapes.get(one) for one in node.inputs]
    known = [one for one in given if one is not None]
    if rule is None or not known or (len(known) < len(given) and not (partial and rule is _all)):
        return None
    if columns and node.op in OF_ROWS:
        known = [(math.prod(one),) for one in known]
    if columns and rule is _all:
        found: Shape | None = of_columns(known)
    else:
        found = rule(node, known)
    if found is not None and any(size <= 0 for size in found):
        raise FormatError(f"`{node.name}` ({node.op}) has the shape {found}")
    return found


def broadcast(shapes: Iterable[Shape]) -> Shape:
    """Return the shape of an elementwise result: axes are aligned at the first."""
    found: list[int] = []
    for shape in shapes:
        found += [1] * (len(shape) - len(found))
        for axis, size in enumerate(shape):
            if size != 1 and found[axis] not in (1, size):
                raise FormatError(f"sizes {found[axis]} and {size} do not go together")
            found[axis] = max(found[axis], size)
    return tuple(found)


def of_columns(shapes: Sequence[Shape]) -> Shape:
    """Return the shape of an elementwise result of files before version 3.

    Values were columns of matrices then, whose axes are a guess of the loader: operands of as many
    elements belong together, whatever their axes.
    """
    whole = broadcast(shapes)
    most = max(shapes, key=math.prod)
    return most if math.prod(whole) > math.prod(most) else whole


def padded(shape: Shape, rank: int) -> Shape:
    """Return `shape` with axes of 1 behind it up to `rank`."""
    return shape + (1,) * (rank - len(shape))


def _same(_: RawNode, given: Sequence[Shape]) -> Shape:
    return given[0]


def _all(_: RawNode, given: Sequence[Shape]) -> Shape:
    return broadcast(given)


def _one(_: RawNode, __: Sequence[Shape]) -> Shape:
    return (1,)


def left_of_times(node: RawNode, given: Sequence[Shape]) -> Shape:
    """Return the left operand's shape as Times takes it.

    Of an old model, a matrix may multiply an image as if that were a vector.
    """
    left, right = given[0], given[1]
    rank = node.fields["output_rank"]
    if len(left) == 2 and rank == 1 and node.op != "TransposeTimes" and right:
        elements = 1
        for axis, size in enumerate(right):
            elements *= size
            if axis == 0 and elements == left[1]:
                break
            if elements == left[1]:
                return (left[0], *right[: axis + 1])
    return left


def _times(node: RawNode, given: Sequence[Shape]) -> Shape:
    left, right = left_of_times(node, given), given[1]
    if not left or not right:
        return broadcast(given)
    if node.op == "TransposeTimes":
        left = padded(left, 2)[::-1]
    rank = node.fields["output_rank"]
    reduced = len(left) - rank
    if reduced < 0 or left[rank:] != right[:reduced]:
        raise FormatError(f"`{node.name}` multiplies the shapes {given[0]} and {right}")
    return left[:rank] + right[reduced:]


def _lookup(node: RawNode, given: Sequence[Shape]) -> Shape:
    table, right = padded(given[0], 2), math.prod(given[1])
    if right % table[1]:
        raise FormatError(f"`{node.name}` looks up {right} elements in {table[1]} words")
    return (table[0] * (right // table[1]),)


def _stacked(node: RawNode, given: Sequence[Shape]) -> Shape:
    axis = node.fields["axis"] - 1
    rank = max(axis + 1, *(len(one) for one in given))
    shapes = [padded(one, rank) for one in given]
    if axis < 0:
        raise FormatError(f"`{node.name}` stacks along axis {axis + 1}")
    rest = broadcast((*one[:axis], 1, *one[axis + 1 :]) for one in shapes)
    return (*rest[:axis], sum(one[axis] for one in shapes), *rest[axis + 1 :])


def _repeated(node: RawNode, given: Sequence[Shape]) -> Shape:
    first = padded(given[0], 1)
    return (first[0] * node.fields["count"], *first[1:])


def _sliced(node: RawNode, given: Sequence[Shape]) -> Shape | None:
    found = list(given[0])
    for axis, begin, end, stride in node.fields["slices"]:
        if axis < 1:
            return None
        if axis > len(found):
            raise FormatError(f"`{node.name}` slices axis {axis} of {given[0]}")
        size = found[axis - 1]
        first, last = begin + size * (begin < 0), end + size * (end <= 0)
        if not 0 <= first < last <= size or stride == 0:
            raise FormatError(f"`{node.name}` slices {begin} to {end} of {size}")
        found[axis - 1] = -(-(last - first) // abs(stride))
    return tuple(found)


def _reshaped(node: RawNode, given: Sequence[Shape]) -> Shape | None:
    if "rows" in node.fields:
        return _reshaped_by_rows(node, given[0])
    begin = max(node.fields["begin"] - 1, 0)
    end = node.fields["end"] - 1 if node.fields["end"] > 0 else len(given[0])
    if not begin <= end <= len(given[0]):
        raise FormatError(f"`{node.name}` reshapes axes {begin} to {end} of {given[0]}")
    between = list(node.fields["shape"])
    old, new = math.prod(given[0][begin:end]), math.prod(size for size in between if size)
    if between.count(0) == 1 and old % new == 0:
        between[between.index(0)] = old // new
    if math.prod(between) != old:
        raise FormatError(f"`{node.name}` reshapes {given[0]} to {node.fields['shape']}")
    return given[0][:begin] + tuple(between) + given[0][end:]


def _reshaped_by_rows(node: RawNode, given: Shape) -> Shape | None:
    rows, image = node.fields["rows"], node.fields["image"]
    if rows != math.prod(given):
        return None  # it would move elements between samples
    return image if math.prod(image) == rows else (rows,)


def transposition(node: RawNode, given: Shape) -> tuple[int, ...]:
    """Return which axis of the input each axis of the output is. Raises FormatError."""
    named = node.fields["permutation"]
    if named:
        least = min(named)
        found = tuple(axis - least for axis in named)
        if least > 1 or sorted(found) != list(range(len(given))):
            raise FormatError(f"`{node.name}` permutes {given} by {named}")
        return found
    first, second = (axis - 1 for axis in node.fields["axes"])
    if min(first, second) < 0 or max(first, second) > 31:
        raise FormatError(f"`{node.name}` swaps the axes {node.fields['axes']}")
    order = list(range(max(len(given), first + 1, second + 1)))
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def _transposed(node: RawNode, given: Sequence[Shape]) -> Shape:
    order = transposition(node, given[0])
    shape = padded(given[0], len(order))
    return tuple(shape[axis] for axis in order)


def _reduced(node: RawNode, given: Sequence[Shape]) -> Shape | None:
    axes, shape = node.fields["axes"], given[0]
    if axes == (0,):
        return (1,) * len(shape) if node.fields["keeps"] else (1,)
    if axes == (-1,):
        return (1,)
    if any(axis > len(shape) for axis in axes):
        raise FormatError(f"`{node.name}` reduces axis {max(axes)} of {shape}")
    if node.fields["keeps"]:
        return tuple(1 if at + 1 in axes else size for at, size in enumerate(shape))
    return tuple(size for at, size in enumerate(shape) if at + 1 not in axes) or (1,)


def spread(values: Sequence[int | bool], kernel: int, rest: Sequence[int | bool]) -> list[int]:
    """Return one value an axis: the last of `values` up to the kernel's rank, behind it `rest`.

    As `FixVectorShape` of CNTK; without any value, `rest` for all.
    """
    found = [int(one) for one in values][: len(rest)]
    if found:
        found += found[-1:] * (kernel - len(found))
    return (found + [int(one) for one in rest[len(found) :]])[: len(rest)]


def window(node: RawNode, shape: Shape) -> dict[str, list[int]]:
    """Return kernel, strides, padding and dilation of a convolution or pooling, one per axis.

    A convolution reduces the axes of the data that its kernel does not name; a pooling leaves them.
    """
    fields, rank = node.fields, len(shape)
    convolves = node.op == "Convolution"
    two_axes = convolves and fields["two_axes"]
    own = 2 if two_axes else len(fields["kernel"])
    ones, zeros = (1,) * rank, (0,) * rank
    rest = shape if convolves else ones
    return {
        "kernel": spread(fields["kernel"][:own], own, rest),
        "strides": spread(fields["strides"][:own] or (1,), own, rest),
        "auto": spread(fields["auto_padding"], own, zeros),
        "lower": spread(fields["lower_pad"], own, zeros),
        "upper": spread(fields["upper_pad"], own, zeros),
        "dilation": spread(fields.get("dilation", ()), own, ones),
    }


def _convolved(node: RawNode, given: Sequence[Shape]) -> Shape | None:
    shape = given[-1] if node.op == "Convolution" else given[0]
    fields = node.fields
    if fields["layout"] == "HWC" and fields.get("two_axes"):
        return _convolved_last(node, shape)
    if node.op == "MaxUnpooling":
        return given[-1]
    if fields["transpose"]:
        return _unconvolved(node, shape)
    along = window(node, shape)
    found = []
    # groups take their share of the channels each
    sizes = (*shape[:-1], shape[-1] // fields.get("groups", 1))
    for axis, size in enumerate(sizes):
        kernel = (along["kernel"][axis] - 1) * along["dilation"][axis] + 1
        ends = along["lower"][axis] + along["upper"][axis]
        left = size + (kernel - 1 if along["auto"][axis] else ends) - kernel
        stride = along["strides"][axis]
        if left < 0 or stride < 1:
            raise FormatError(f"`{node.name}` moves a window of {kernel} over {size} by {stride}")
        found.append((-(-left // stride) if fields.get("ceiling") else left // stride) + 1)
    maps = fields.get("maps", ()) or (1,)
    for axis in range(len(found)):
        if len(maps) > 1 and axis < len(maps):
            found[axis] *= maps[axis]
    if len(maps) == 1:
        found[-1] *= maps[0]
    return tuple(found)


def _unconvolved(node: RawNode, shape: Shape) -> Shape | None:
    kept: Shape = node.fields["output_shape"]
    if math.prod(kept) and len(kept) == len(shape):
        return kept
    along = window(node, shape)
    found = []
    for axis, size in enumerate(shape[:-1]):
        reach = (along["kernel"][axis] - 1) * along["dilation"][axis] + 1
        ends = along["lower"][axis] + along["upper"][axis]
        rest = 1 if along["auto"][axis] else reach - ends
        found.append((size - 1) * along["strides"][axis] + rest)
    return (*found, along["kernel"][-1])


def _convolved_last(node: RawNode, shape: Shape) -> Shape:
    """Of a convolution whose channels come first in a shape (CNTK's layout HWC)."""
    if len(shape) != 3:
        raise FormatError(f"`{node.name}` convolves two axes of {shape}")
    sizes = [
        (size - (kernel % 2 if node.fields["auto_padding"][0] else kernel)) // stride + 1
        for size, kernel, stride in zip(
            shape[1:], node.fields["kernel"], node.fields["strides"], strict=False
        )
    ]
    return (math.prod(node.fields["maps"]), *sizes)


def _pooled(node: RawNode, given: Sequence[Shape]) -> Shape:
    shape = given[0]
    if len(shape) != 3 or 0 in node.fields["strides"]:
        raise FormatError(f"`{node.name}` pools two axes of {shape}")
    first = 1 if node.fields["layout"] == "HWC" else 0
    found = list(shape)
    for at, (kernel, stride) in enumerate(
        zip(node.fields["kernel"], node.fields["strides"], strict=True)
    ):
        found[first + at] = (shape[first + at] - kernel) // stride + 1
    return tuple(found)


def _recurrent(node: RawNode, given: Sequence[Shape]) -> Shape:
    data = given[0] if node.fields["data_first"] else given[-1]
    return (node.fields["hidden"] * (1 + node.fields["bidirectional"]), *data[1:])


SAME = """
Abs Acos Asin Asinh Atan Atanh BatchNormalization Ceil Cosh Cosine Dropout Exp ExponentialLinearUnit
Floor Hardmax Log LogSoftmax Mean InvStdDev Negate Pass PerDimMeanVarDeNormalization
PerDimMeanVarDeNormalizationNode PerDimMeanVarNormalization PerDimMeanVarNormalizationNode
Reciprocal ReconcileDynamicAxis ReconcileMBLayout RectifiedLinear ScatterPacked Sigmoid Sin Sinh
Softmax Sqrt StableSigmoid StopGradient StraightThrough Tan Tanh
""".split()  # noqa: SIM905
OF_ROWS = ("RowRepeat", "RowSlice", "RowStack")
"""Operators on the rows of a matrix; before version 3 a column has no other axes."""

BROADCAST = """
Clip ColumnElementTimes DiagTimes ElementTimes Equal Greater GreaterEqual If Less LessEqual LogPlus
Minus NotEqual Plus RowElementTimes Scale
""".split()  # noqa: SIM905
SCALAR = """
ClassificationError CosDistance CrossEntropy CrossEntropyWithSoftmax ErrorPrediction Logistic
SquareError SumColumnElements SumElements Where PackedIndex
""".split()  # noqa: SIM905

RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(BROADCAST, _all),
    **dict.fromkeys(SCALAR, _one),
    "AveragePooling": _pooled,
    "Convolution": _convolved,
    "Crop": lambda _, given: given[1][:2] + given[0][2:],
    "GatherPacked": lambda _, given: given[-1],
    "LegacyReshape": _reshaped,
    "LookupTable": _lookup,
    "MaxPooling": _pooled,
    "MaxUnpooling": _convolved,
    "OptimizedRNNStack": _recurrent,
    "Pooling": _convolved,
    "QuantizedTimes": _times,
    "RNN": _recurrent,
    "ReduceElements": _reduced,
    "Reshape": _reshaped,
    "RowRepeat": _repeated,
    "RowSlice": _sliced,
    "RowStack": _stacked,
    "Slice": _sliced,
    "Times": _times,
    "Transpose": _transposed,
    "TransposeDimensions": _transposed,
    "TransposeTimes": _times,
}
