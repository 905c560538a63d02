"""A Caffe network read without Caffe: layers from the prototxt, weights from the caffemodel.

Format: `src/caffe/proto/caffe.proto` of BVLC Caffe, both the old `layers` and the new `layer`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.formats.content import LARGEST_DOCUMENT, open_content
from deploykit.formats.protobuf_text import Message, messages, parse, strings
from deploykit.formats.protobuf_wire import fields, message, number, numbers, text
from deploykit.formats.reading import FormatError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OLD_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONVOLUTION": "Convolution",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "ELTWISE": "Eltwise",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "ACCURACY": "Accuracy",
    "DATA": "Data",
    "IMAGE_DATA": "ImageData",
    "HDF5_DATA": "HDF5Data",
    "MEMORY_DATA": "MemoryData",
    "DUMMY_DATA": "DummyData",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "HINGE_LOSS": "HingeLoss",
}

TRAINING = (
    "Accuracy",
    "SoftmaxWithLoss",
    "EuclideanLoss",
    "SigmoidCrossEntropyLoss",
    "HingeLoss",
    "ContrastiveLoss",
    "InfogainLoss",
    "MultinomialLogisticLoss",
    "SmoothL1Loss",
    "Silence",
)
"""Layers that only training and testing need; whatever they read is left as it is."""

DATA = ("Data", "ImageData", "HDF5Data", "MemoryData", "WindowData", "AnnotatedData")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer: what it reads and makes, its settings by the name of their message, its weights."""

    name: str
    kind: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Message
    blobs: tuple[Array, ...] = ()

    def settings(self, name: str) -> Settings:
        """Return the settings message `name` (`convolution_param`), empty where there is none."""
        found = messages(self.message, name)
        return Settings(self.name, found[0] if found else {})


@dataclass(frozen=True)
class Settings:
    """A message of settings; values are asked for with the default of `caffe.proto`."""

    layer: str
    message: Message

    def integers(self, name: str) -> list[int]:
        """Return a repeated number. Raises SourceError, naming the layer, where one is none."""
        try:
            return [int(one, 0) for one in strings(self.message, name)]
        except ValueError as error:
            raise SourceError(f"layer `{self.layer}`: `{name}` is no number: {error}") from error

    def integer(self, name: str, default: int) -> int:
        """Return a number."""
        return (self.integers(name) or [default])[-1]

    def real(self, name: str, default: float) -> float:
        """Return a floating-point number."""
        try:
            return float((strings(self.message, name) or [str(default)])[-1])
        except ValueError as error:
            raise SourceError(f"layer `{self.layer}`: `{name}` is no number: {error}") from error

    def reals(self, name: str) -> list[float]:
        """Return repeated floating-point numbers."""
        return [
            Settings(self.layer, {name: [one]}).real(name, 0) for one in self.message.get(name, [])
        ]

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        found = strings(self.message, name)
        return found[-1].lower() in ("true", "1") if found else default

    def word(self, name: str, default: str) -> str:
        """Return the name of an enumeration's value."""
        return (strings(self.message, name) or [default])[-1]


@dataclass(frozen=True, kw_only=True)
class CaffeNet:
    """A network in its test phase: `inputs` with their shapes (None where the file has none)."""

    path: Path
    name: str
    inputs: Mapping[str, tuple[int, ...] | None]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    dropped: tuple[str, ...]


def read(location: Path) -> CaffeNet:
    """Read the network of which `location` is the caffemodel or the prototxt.

    Raises SourceError where either is missing or damaged.
    """
    weights_path, text_path = _pair(location)
    try:
        content = text_path.read_bytes()
        if len(content) > LARGEST_DOCUMENT:
            raise SourceError(f"`{text_path}` is too large for a prototxt")
        net = parse(content)
        blobs = _blobs(weights_path)
        return _net(text_path, net, blobs)
    except (ValueError, RecursionError, OverflowError) as error:  # FormatError is a ValueError
        raise SourceError(
            f"`{text_path}` or `{weights_path.name}` is damaged: {error}",
            hint="copy or download both again",
        ) from error


def _pair(location: Path) -> tuple[Path, Path]:
    if location.suffix == ".prototxt":
        other = _beside(location, ".caffemodel")
        return other, location
    return location, _beside(location, ".prototxt")


def _beside(path: Path, suffix: str) -> Path:
    named = path.with_suffix(suffix)
    every = sorted(path.parent.glob(f"*{suffix}"))
    deploy = [one for one in every if "deploy" in one.name]
    if named in every:
        return named
    if len(every) == 1 or len(deploy) == 1:
        return (deploy if len(deploy) == 1 else every)[0]
    what = "layers" if suffix == ".prototxt" else "weights"
    raise SourceError(
        f"the {what} of `{path}` are missing: there is no `{named.name}` beside it",
        hint=f"copy the network's `{suffix}` file into `{path.parent}`",
    )


def _blobs(path: Path) -> dict[str, tuple[Array, ...]]:
    found: dict[str, tuple[Array, ...]] = {}
    for key, value in fields(open_content(path).view):
        if key not in (2, 100) or isinstance(value, int):
            continue
        name, blobs = "", []
        for inner, part in fields(value):
            if inner == (4 if key == 2 else 1):
                name = text(part)
            elif inner == (6 if key == 2 else 7):
                blobs.append(_blob(message(part)))
        found[name] = tuple(blobs)
    return found


def _blob(view: memoryview) -> Array:
    import numpy as np

    old, shape = [0, 0, 0, 0], []
    has_shape = False
    pieces: list[Array] = []
    for key, value in fields(view):
        if key <= 4:
            old[key - 1] = number(value)
        elif key == 7:
            has_shape = True
            for inner, part in fields(message(value)):
                if inner == 1:
                    shape += numbers(part)
        elif key in (5, 8):
            kind = "<f4" if key == 5 else "<f8"
            if isinstance(value, int):  # one value, not packed
                width = 4 if key == 5 else 8
                pieces.append(np.frombuffer(value.to_bytes(width, "little"), kind))
            else:
                pieces.append(np.frombuffer(value, kind))
    data = pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.zeros(0, "<f4")])
    sizes = shape if has_shape else list(old)
    if any(one < 0 for one in sizes) or math.prod(sizes) != data.size:
        raise FormatError(f"weights of shape {sizes} with {data.size} values")
    return data.astype(np.float32, copy=False).reshape(sizes)


def _net(path: Path, net: Message, blobs: Mapping[str, tuple[Array, ...]]) -> CaffeNet:
    inputs: dict[str, tuple[int, ...] | None] = {}
    top = Settings("network", net)
    names = strings(net, "input")
    dims, shapes = top.integers("input_dim"), messages(net, "input_shape")
    for at, name in enumerate(names):
        if shapes:
            inputs[name] = tuple(Settings(name, shapes[min(at, len(shapes) - 1)]).integers("dim"))
        else:
            inputs[name] = tuple(dims[4 * at : 4 * at + 4]) or None
    layers: list[Layer] = []
    dropped: list[str] = []
    made: dict[str, None] = {}
    read_by: set[str] = set()
    for entry in [*messages(net, "layer"), *messages(net, "layers")]:
        layer = _layer(entry, blobs)
        if not _in_test(entry):
            continue
        if layer.kind in TRAINING:
            dropped.append(f"{layer.name} ({layer.kind})")
            continue
        if layer.kind == "Input" or layer.kind == "DummyData":
            shape = messages(layer.settings("input_param").message, "shape")
            shape = shape or messages(layer.settings("dummy_data_param").message, "shape")
            for at, name in enumerate(layer.tops):
                sizes = Settings(layer.name, shape[min(at, len(shape) - 1)]) if shape else None
                inputs[name] = tuple(sizes.integers("dim")) if sizes else None
            continue
        if layer.kind in DATA:
            inputs[layer.tops[0]] = None
            dropped.append(f"{layer.name} ({layer.kind})")
            continue
        layers.append(layer)
        for name in layer.bottoms:
            read_by.add(name)
            made.pop(name, None)
        made.update(dict.fromkeys(layer.tops))
    if not layers:
        raise FormatError("it has no layer")
    # Caffe keeps what no layer has read in a set, in the order of the names
    return CaffeNet(
        path=path,
        name=(strings(net, "name") or [path.stem])[0],
        inputs=inputs,
        layers=tuple(layers),
        outputs=tuple(sorted(made)),
        dropped=tuple(dropped),
    )


def _layer(entry: Message, blobs: Mapping[str, tuple[Array, ...]]) -> Layer:
    name = (strings(entry, "name") or [""])[0]
    kind = (strings(entry, "type") or [""])[0]
    return Layer(
        name=name,
        kind=OLD_TYPES.get(kind, kind),
        bottoms=tuple(strings(entry, "bottom")),
        tops=tuple(strings(entry, "top")),
        message=entry,
        blobs=blobs.get(name, ()),
    )


def _in_test(entry: Message) -> bool:
    included = [one for rule in messages(entry, "include") for one in strings(rule, "phase")]
    excluded = [one for rule in messages(entry, "exclude") for one in strings(rule, "phase")]
    return ("TEST" in included or not included) and "TEST" not in excluded
