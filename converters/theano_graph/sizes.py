"""What a graph says of the sizes of its inputs: which axes are equal, and which a weight decides.

Theano declares only the number of axes. A matrix that is multiplied with a weight has as many
columns as that has rows; two inputs that are added have the same sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph.emission import is_tensor

if TYPE_CHECKING:
    from converters.theano_graph.emission import Emission

    Axes = list["Axis"]


class Axis:
    """The size of one axis, equal to that of others it was united with."""

    def __init__(self, size: int | None = None) -> None:
        self._same: Axis | None = None
        self._size = size

    def root(self) -> Axis:
        """Return the axis that stands for all equal ones."""
        axis = self
        while axis._same is not None:
            axis = axis._same
        return axis

    @property
    def size(self) -> int | None:
        """The size, where it is known."""
        return self.root()._size

    def unite(self, other: Axis) -> None:
        """Make both the same, unless their sizes contradict: then the source will say so itself."""
        one, two = self.root(), other.root()
        if one is two or (None not in (one._size, two._size) and one._size != two._size):
            return
        if one._size is None:
            one._size = two._size
        two._same = one

    def fix(self, size: int) -> None:
        """Give it a size, where it has none."""
        if self.size is None:
            self.root()._size = size


class Sizes:
    """The axes of every variable that the outputs need."""

    def __init__(self, emission: Emission) -> None:
        self._emission = emission
        self._axes: dict[Any, Axes] = {}
        self._loops: dict[Any, Any] = {}

    def of(self, variable: Any) -> Axes:
        """Return the axes of a variable."""
        if variable not in self._axes:
            known: Sequence[int | None] = getattr(variable.type, "shape", ())
            if variable.owner is None and (
                hasattr(variable, "get_value") or hasattr(variable, "data")
            ):
                value = self._emission.known(variable)
                known = value.shape if value is not None else known
            self._axes[variable] = [Axis(size) for size in known]
        return self._axes[variable]

    def follow(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Draw every conclusion from the nodes between; twice, for a later one may help an earlier."""
        from pytensor.graph.basic import io_toposort

        nodes = io_toposort(inputs, outputs)
        for _ in range(2):
            for node in nodes:
                rule = _rule(node)
                if rule is not None:
                    rule(self, node)
        for node in nodes:
            if type(node.op).__name__ == "Reshape":
                self._assume_batch(node)

    def _assume_batch(self, node: Any) -> None:
        """Take `x.reshape((-1, 1, 28, 28))` of a matrix for one image in each row."""
        source, target = self.of(node.inputs[0]), self.of(node.outputs[0])
        rest = [axis.size for axis in target[1:]]
        is_open = len(source) == 2 and source[0].size is None and source[1].size is None
        if is_open and target and target[0].size is None and rest and None not in rest:
            source[1].fix(math.prod(one for one in rest if one is not None))
            source[0].unite(target[0])

    def loop(self, node: Any) -> Any:
        """Return the parts of a scan, with a copy of its body: equal loops share one."""
        from pytensor.scan.utils import ScanArgs

        if node not in self._loops:
            self._loops[node] = ScanArgs.from_node(node, clone=True)
        return self._loops[node]

    def entry(self, variable: Any) -> Axis | None:
        """Return the axis whose size a scalar variable is, None where it is computed."""
        known = self._emission.known(variable)
        if known is not None:
            return Axis(int(known)) if known.size == 1 and int(known) >= 0 else None
        node = variable.owner
        if node is None:
            return None
        kind = type(node.op).__name__
        if kind == "Shape_i":
            return self.of(node.inputs[0])[int(node.op.i)]
        if kind in ("TensorFromScalar", "ScalarFromTensor"):
            return self.entry(node.inputs[0])
        scalar = type(getattr(node.op, "scalar_op", None)).__name__
        if scalar in ("Cast", "Identity"):
            return self.entry(node.inputs[0])
        if scalar == "Mul":
            # a product with one, as products of shapes begin
            others = [one for one in node.inputs if self._number(one) != 1]
            return self.entry(others[0]) if len(others) == 1 else None
        if kind == "Subtensor" and len(node.op.idx_list) == 1:
            inner = node.inputs[0].owner
            if inner is not None and type(inner.op).__name__ == "Shape":
                from pytensor.tensor.subtensor import get_idx_list

                (place,) = get_idx_list(node.inputs, node.op.idx_list)
                at = place if isinstance(place, int) else self._number(place)
                axes = self.of(inner.inputs[0])
                if at is not None and -len(axes) <= at < len(axes):
                    return axes[at]
        return None

    def _number(self, place: Any) -> int | None:
        known = None if isinstance(place, slice) else self._emission.known(place)
        return None if known is None else int(known)

    def entries(self, variable: Any) -> list[Axis | None] | None:
        """Return the axes whose sizes the elements of a vector are."""
        known = self._emission.known(variable)
        if known is not None:
            return [Axis(int(n)) if int(n) >= 0 else None for n in known.reshape(-1)]
        node = variable.owner
        if node is None:
            return None
        kind = type(node.op).__name__
        if kind == "MakeVector":
            return [self.entry(one) for one in node.inputs]
        if kind == "Shape":
            return list(self.of(node.inputs[0]))
        if kind == "Elemwise" and type(node.op.scalar_op).__name__ == "Cast":
            return self.entries(node.inputs[0])
        if kind == "Join":
            parts = [self.entries(one) for one in node.inputs[1:]]
            return None if None in parts else [one for part in parts for one in part or []]
        if kind == "Subtensor":
            return self._some(node)
        return None

    def _some(self, node: Any) -> list[Axis | None] | None:
        """Return the entries that a slice takes of a vector of sizes."""
        from pytensor.tensor.subtensor import get_idx_list

        entries = self.entries(node.inputs[0])
        (place,) = get_idx_list(node.inputs, node.op.idx_list)
        if entries is None or not isinstance(place, slice):
            return None
        bounds = []
        for one in (place.start, place.stop, place.step):
            number = one if one is None or isinstance(one, int) else self._number(one)
            if number is None and one is not None:
                return None
            bounds.append(number)
        return entries[slice(*bounds)]


def _unite(first: Sequence[Axis], second: Sequence[Axis]) -> None:
    for one, two in zip(first, second, strict=False):
        one.unite(two)


def _elemwise(sizes: Sizes, node: Any) -> None:
    for output in node.outputs:
        axes = sizes.of(output)
        for one in node.inputs:
            for own, axis in zip(sizes.of(one), axes, strict=False):
                # an axis of one is stretched
                if own.size != 1:
                    axis.unite(own)


def _same(sizes: Sizes, node: Any) -> None:
    _unite(sizes.of(node.inputs[0]), sizes.of(node.outputs[0]))


def _dimshuffle(sizes: Sizes, node: Any) -> None:
    source, target = sizes.of(node.inputs[0]), sizes.of(node.outputs[0])
    for axis, order in zip(target, node.op.new_order, strict=True):
        if order != "x":
            axis.unite(source[int(order)])


def _dot(sizes: Sizes, node: Any) -> None:
    first, second = sizes.of(node.inputs[0]), sizes.of(node.inputs[1])
    if not first or not second:
        return
    first[-1].unite(second[-2] if len(second) > 1 else second[0])
    result = [*first[:-1], *second[:-2], *second[-1:][: len(second) - 1]]
    _unite(sizes.of(node.outputs[0]), result)


def _batched_dot(sizes: Sizes, node: Any) -> None:
    first, second, result = (sizes.of(one) for one in (*node.inputs, *node.outputs))
    first[0].unite(second[0])
    result[0].unite(first[0])
    first[-1].unite(second[1])


def _reshape(sizes: Sizes, node: Any) -> None:
    source, target = sizes.of(node.inputs[0]), sizes.of(node.outputs[0])
    for axis, entry in zip(target, sizes.entries(node.inputs[1]) or [], strict=False):
        if entry is not None:
            axis.unite(entry)
    # equal axes on both sides cancel; of what is left, one unknown follows from the others
    left = [axis.root() for axis in source]
    right = []
    for axis in (one.root() for one in target):
        if axis in left:
            left.remove(axis)
        else:
            right.append(axis)
    for unknown, known in ((left, right), (right, left)):
        open_axes = [axis for axis in unknown if axis.size is None]
        others = math.prod(axis.size for axis in unknown if axis.size is not None)
        if len(open_axes) == 1 and all(axis.size is not None for axis in known) and others:
            product = math.prod(axis.size for axis in known if axis.size is not None)
            if product % others == 0:
                open_axes[0].fix(product // others)


def _convolution(sizes: Sizes, node: Any) -> None:
    x, kernel, result = (sizes.of(one) for one in (*node.inputs, node.outputs[0]))
    groups = int(getattr(node.op, "num_groups", 1))
    for axes, declared in ((x, "imshp"), (kernel, "kshp")):
        for axis, size in zip(axes, getattr(node.op, declared, None) or (), strict=False):
            if isinstance(size, int):
                axis.fix(size)
    if kernel[1].size is not None and not getattr(node.op, "unshared", False):
        x[1].fix(kernel[1].size * groups)
    result[0].unite(x[0])
    result[1].unite(kernel[0])


def _convolution_back(sizes: Sizes, node: Any) -> None:
    kernel, x, result = (sizes.of(one) for one in (node.inputs[0], node.inputs[1], node.outputs[0]))
    x[1].unite(kernel[0])
    x[0].unite(result[0])
    if kernel[1].size is not None:
        result[1].fix(kernel[1].size * int(node.op.num_groups))


def _pool(sizes: Sizes, node: Any) -> None:
    x, result = sizes.of(node.inputs[0]), sizes.of(node.outputs[0])
    _unite(x[: -node.op.ndim], result)


def _reduction(sizes: Sizes, node: Any) -> None:
    x = sizes.of(node.inputs[0])
    axes = range(len(x)) if node.op.axis is None else [int(a) % len(x) for a in node.op.axis]
    kept = [one for at, one in enumerate(x) if at not in axes]
    for output in node.outputs:
        _unite(sizes.of(output), kept)


def _join(sizes: Sizes, node: Any) -> None:
    axis = sizes._emission.known(node.inputs[0])
    if axis is None:
        return
    result = sizes.of(node.outputs[0])
    at = int(axis) % len(result)
    parts = [sizes.of(one) for one in node.inputs[1:]]
    for part in parts:
        for place, own in enumerate(part):
            if place != at:
                own.unite(result[place])
    lengths = [part[at].size for part in parts]
    if None not in lengths:
        result[at].fix(sum(one for one in lengths if one is not None))


def _subtensor(sizes: Sizes, node: Any) -> None:
    from pytensor.tensor.subtensor import get_idx_list

    source, target = sizes.of(node.inputs[0]), list(sizes.of(node.outputs[0]))
    entries = get_idx_list(node.inputs, node.op.idx_list)
    for at, axis in enumerate(source):
        entry = entries[at] if at < len(entries) else slice(None)
        if not isinstance(entry, slice):
            continue
        own = target.pop(0)
        step = entry.step if not hasattr(entry.step, "type") else sizes._number(entry.step)
        if entry.start is None and entry.stop is None and step in (None, 1, -1):
            own.unite(axis)


def _rows(sizes: Sizes, node: Any) -> None:
    table, places = sizes.of(node.inputs[0]), sizes.of(node.inputs[1])
    _unite(sizes.of(node.outputs[0]), [*places, *table[1:]])


def _alloc(sizes: Sizes, node: Any) -> None:
    given = node.inputs if type(node.op).__name__ == "AllocEmpty" else node.inputs[1:]
    for axis, one in zip(sizes.of(node.outputs[0]), given, strict=False):
        entry = sizes.entry(one)
        if entry is not None:
            axis.unite(entry)


def _scan(sizes: Sizes, node: Any) -> None:
    parts = sizes.loop(node)
    for outer, inner in zip(parts.outer_in_seqs, parts.inner_in_seqs, strict=True):
        _unite(sizes.of(outer)[1:], sizes.of(inner))
    for outer, inner in zip(parts.outer_in_non_seqs, parts.inner_in_non_seqs, strict=True):
        if is_tensor(outer):
            _unite(sizes.of(outer), sizes.of(inner))
    states = [
        *zip(
            [*parts.outer_in_mit_sot, *parts.outer_in_sit_sot],
            [*parts.inner_in_mit_sot, *([one] for one in parts.inner_in_sit_sot)],
            [*parts.inner_out_mit_sot, *parts.inner_out_sit_sot],
            [*parts.outer_out_mit_sot, *parts.outer_out_sit_sot],
            strict=True,
        )
    ]
    for buffer, inputs, made, result in states:
        for one in (*inputs, made):
            _unite(sizes.of(buffer)[1:], sizes.of(one))
        _unite(sizes.of(buffer)[1:], sizes.of(result)[1:])
    sizes.follow(parts.inner_inputs, parts.inner_outputs)
    for made, result in zip(parts.inner_out_nit_sot, parts.outer_out_nit_sot, strict=True):
        _unite(sizes.of(made), sizes.of(result)[1:])


RULES: dict[str, Callable[[Sizes, Any], None]] = {
    "Elemwise": _elemwise,
    **dict.fromkeys(("Softmax", "LogSoftmax", "SoftmaxWithBias", "CumOp", "SpecifyShape"), _same),
    **dict.fromkeys(("CheckAndRaise", "ViewOp", "IncSubtensor", "Unbroadcast"), _same),
    **dict.fromkeys(("AbstractBatchNormInference", "CpuContiguous"), _same),
    "DimShuffle": _dimshuffle,
    "Dot": _dot,
    "Dot22": _dot,
    "BatchedDot": _batched_dot,
    "Reshape": _reshape,
    "AbstractConv": _convolution,
    "ConvOp": _convolution,
    "AbstractConv_gradInputs": _convolution_back,
    "Pool": _pool,
    "CAReduce": _reduction,
    "MaxAndArgmax": _reduction,
    "Argmax": _reduction,
    "Join": _join,
    "Subtensor": _subtensor,
    "AdvancedSubtensor1": _rows,
    "Alloc": _alloc,
    "AllocEmpty": _alloc,
    "Scan": _scan,
}


def _rule(node: Any) -> Callable[[Sizes, Any], None] | None:
    for kind in type(node.op).__mro__:
        if kind.__name__ in RULES:
            return RULES[kind.__name__]
    return None
