"""In which layouts each ONNX value exists in the TensorFlow Lite graph.

A value may exist in several **forms**: permuted tensors, each known by its permutation of the value's
axes. TensorFlow Lite convolves with channels last, ONNX with channels first; an operator asks for the
form that it needs, gives its result in the form that it made, and one that does not care takes what
is there. So a TRANSPOSE is written only where two neighbours truly disagree, and never twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.emitting import (
    Emitter,
    NeedsSizeError,
    Permutation,
    Shape,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

    Array = np.ndarray[Any, Any]


def inverse(permutation: Permutation) -> Permutation:
    """Return the permutation that undoes `permutation`."""
    return tuple(permutation.index(axis) for axis in range(len(permutation)))


class Values:
    """The ONNX values of the graph: constants, shapes, and the forms that exist."""

    def __init__(
        self, emit: Emitter, shapes: dict[str, Shape | None], dtypes: dict[str, str]
    ) -> None:
        self.emit = emit
        self.constants: dict[str, Array] = {}
        self._shapes = shapes
        self._dtypes = dtypes
        self._forms: dict[str, dict[Permutation, Tensor]] = {}
        self.deferred: dict[str, str] = {}
        """Real values that exist as stored ones alone, until somebody reads them: name to name."""
        self.readers: dict[str, int] = {}
        self.sources: dict[str, tuple[Tensor, int]] = {}
        """Where each open size can be read at run time: a tensor and its axis."""

    def constant(self, name: str | None) -> Array | None:
        """Return the value where it is known now."""
        return self.constants.get(name) if name else None

    def shape(self, name: str) -> Shape:
        """Return the sizes of a value. Raises NeedsSizeError where even the rank is unknown."""
        if name in self.constants:
            return tuple(self.constants[name].shape)
        known = self._shapes.get(name)
        if known is None:
            raise NeedsSizeError(f"the rank of `{name}` is not known")
        return known

    def dtype(self, name: str) -> str:
        """Return the dtype of a value."""
        if name in self.constants:
            return self.constants[name].dtype.name
        if name not in self._dtypes:
            raise UnsupportedError(f"the type of `{name}` is not known")
        return self._dtypes[name]

    def put(self, name: str, tensor: Tensor, permutation: Permutation | None = None) -> None:
        """Say that the value exists as `tensor`, permuted; each tells the sizes that the other lacks.

        Where they disagree the tensor is right: inference is mistaken about a few operators.
        """
        order = tuple(range(tensor.rank)) if permutation is None else permutation
        self._forms.setdefault(name, {})[order] = tensor
        tensor.holders += 1
        self._dtypes.setdefault(name, tensor.dtype)
        own = tuple(tensor.shape[axis] for axis in inverse(order))
        inferred = self._shapes.get(name)
        if inferred is not None and len(inferred) == len(own):
            own = tuple(a if isinstance(a, int) else b for a, b in zip(own, inferred, strict=True))
            tensor.shape = tuple(own[axis] for axis in order)
        self._shapes[name] = own
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, str):
                self.sources.setdefault(size, (tensor, axis))

    def replace(self, name: str, tensor: Tensor, permutation: Permutation) -> None:
        """Let the value be `tensor` from now on."""
        self._forms[name] = {}
        self.put(name, tensor, permutation)

    def same(self, name: str, source: str, permutation: Permutation | None = None) -> None:
        """Say that `name` is `source` with its axes permuted, in all forms that there are."""
        if source in self.constants:
            array = self.constants[source]
            self.constants[name] = array if permutation is None else array.transpose(permutation)
            return
        for order, tensor in self.forms(source).items():
            own = order
            if permutation is not None:
                back = inverse(permutation)
                own = tuple(back[axis] for axis in order)
            self.put(name, tensor, own)

    def forms(self, name: str) -> dict[Permutation, Tensor]:
        """Return the forms that exist."""
        if name in self.deferred and name not in self._forms:
            source = self.deferred[name]
            order = self.first(source)
            stored = self.form(source, order)
            real = self.emit.add(
                "DEQUANTIZE", [stored], stored.shape, "float32", "DequantizeOptions"
            )
            self.put(name, real, order)
        if name not in self._forms and name not in self.constants:
            raise UnsupportedError(f"the value `{name}` is read before anything makes it")
        return self._forms.get(name, {})

    def first(self, name: str) -> Permutation:
        """Return the form in which the value came to be."""
        return next(iter(self.forms(name)), tuple(range(len(self.shape(name)))))

    def form(self, name: str, permutation: Permutation) -> Tensor:
        """Return the value with its axes permuted, by a TRANSPOSE where that is not there yet."""
        if name in self.constants:
            return self.emit.constant(self.constants[name].transpose(permutation))
        forms = self.forms(name)
        if permutation not in forms:
            order, tensor = next(iter(forms.items()))
            forms[permutation] = self.emit.transpose(
                tensor, tuple(order.index(axis) for axis in permutation)
            )
        return forms[permutation]

    def own(self, name: str) -> Tensor:
        """Return the value with its axes as ONNX has them."""
        return self.form(name, tuple(range(len(self.shape(name)))))

    def common(self, names: Sequence[str], rank: int) -> Permutation:
        """Return the form that most of the values of `rank` axes are in; a permuted one wins ties."""
        identity = tuple(range(rank))
        votes: dict[Permutation, int] = {}
        for name in names:
            if name in self.constants or len(self.shape(name)) != rank:
                continue
            for order in self.forms(name):
                votes[order] = votes.get(order, 0) + 1
        if not votes:
            return identity
        return max(votes, key=lambda order: (votes[order], order != identity))

    def aligned(self, name: str, rank: int, permutation: Permutation) -> Tensor:
        """Return the value with leading axes up to `rank`, permuted: ready to broadcast."""
        shape = self.shape(name)
        if len(shape) == rank:
            return self.form(name, permutation)
        own = self.own(name)
        if permutation == tuple(range(rank)) or not shape:
            return own
        widened = self.emit.reshape(own, (1,) * (rank - len(shape)) + shape)
        return self.emit.transpose(widened, permutation)


def channels_last(rank: int) -> Permutation:
    """Return the form with the channels, ONNX's axis 1, at the end."""
    return (0, *range(2, rank), 1)
