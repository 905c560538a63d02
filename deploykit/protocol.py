"""What the core and its plugins say to each other: requests, results, and the shape of a session.

A plugin is a module with plain functions; none of these classes is to be inherited.

| plugin    | function                                        | |
|-----------|-------------------------------------------------|-|
| converter | `inspect(source: Source) -> Signature`          | |
| converter | `convert(request: ConvertRequest) -> ConvertResult` | writes the ONNX file |
| converter | `reference(request: ReferenceRequest) -> Session`   | the source framework itself |
| target    | `probe() -> tuple[Availability, ...]`           | one item per device |
| target    | `compile(request: CompileRequest) -> CompileResult` | writes the payload |
| target    | `load(request: LoadRequest) -> Session`         | |
| target    | `operators(request: OperatorsRequest) -> tuple[OperatorRun, ...]` | may be missing |

This file also runs inside plugin environments: standard library only, Python 3.10.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

VERSION = 1
"""Of the messages between core and worker; both sides must agree."""

Dimension = int | str | None
"""A fixed size, the name of a dynamic axis, or an unnamed dynamic axis."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output.

    `dtype` is numpy's name (`float32`, `int64`, `bool`), or `string`, `bfloat16`. `shape` is None
    where even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}:{self.dtype}"
        sizes = ",".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}:{self.dtype}[{sizes}]"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs and outputs in the order of the model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as the user named it.

    `location` is an absolute path of a file or folder, or `/path/module.py:callable`. `inputs` are
    the user's own words about inputs (`--input`), complete specs that override what the file says.
    `options` are settings of this converter (`--set key=value`). Code in the model, such as a
    pickle's, runs only where `trust` is true.
    """

    location: str
    format: str
    inputs: tuple[TensorSpec, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    trust: bool = False


@dataclass(frozen=True, kw_only=True)
class DynamicAxis:
    """Axis number `axis` of `input` shall stay dynamic under the name `name`."""

    input: str
    axis: int
    name: str


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """Write `source` as an ONNX file to `output` (a path that does not exist yet).

    `opset` None means the converter's own best choice.
    """

    source: Source
    output: str
    opset: int | None = None
    dynamic: tuple[DynamicAxis, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """What came out: `signature` as the ONNX file has it, in the source's names and order.

    `repairs` says in one line each what was mended before or after the export; `versions` names
    the packages that did it. Where the source's own kernels differ, by rounding, so may the ONNX
    model: integer outputs by `steps`, real ones by `atol` of their scale.
    """

    signature: Signature
    opset: int
    repairs: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    atol: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ReferenceRequest:
    """Load the source model in its own framework; `threads` None leaves the framework's default.

    `compiled` asks for the framework's own compiler (torch.compile, XLA), which a converter that has
    one names in its block.
    """

    source: Source
    threads: int | None = None
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether `device` of a target can run here: `detail` names it, or says what is missing.

    `unprobed` goes with a device that has an environment of its own, and says that only there it
    can be known; here nothing speaks against it. `by_name` goes with one that is not available and
    still runs where it is asked for by name: a simulator, whose values are right and times are not.
    """

    device: str
    available: bool
    detail: str = ""
    unprobed: bool = False
    by_name: bool = False
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine to compile for, where that is not this one.

    `triple` is LLVM's (`aarch64-linux-gnu`), and so are `cpu` (`cortex-a76`) and `features`
    (`+dotprod`); `cores` is what a model may use. `gpu` is the architecture of the accelerator in
    its vendor's words (`sm_87`), empty where there is none.
    """

    name: str
    triple: str
    cpu: str = ""
    features: tuple[str, ...] = ()
    cores: int | None = None
    gpu: str = ""

    @property
    def architecture(self) -> str:
        """The machine in the kernel's words: `aarch64`, `x86_64`, `riscv64`."""
        return self.triple.partition("-")[0]


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """Compile the ONNX file `model` into the existing empty folder `payload`.

    `precision` is one that the target knows: `fp32`, `fp16`, `bf16`, `tf32`, `int8`. `shapes` fixes
    dynamic inputs, name to sizes. `hardware` None means this machine; a target that cannot compile
    for another raises `UnsupportedError`. A setting that the target does not know is a
    `UsageError` that lists those it knows.
    """

    model: str
    payload: str
    signature: Signature
    device: str
    precision: str = "fp32"
    threads: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    hardware: Hardware | None = None


@dataclass(frozen=True, kw_only=True)
class CompileResult:
    """What was compiled: `signature` as the artifact takes and gives it.

    `settings` are those in force, defaults included; `notes` what the user must know (a build
    without tuning, a precision the device does not have). `cpu_flags` are the instruction sets, in
    the kernel's words, that the payload was compiled for and cannot run without. `portable` says
    that the payload is data for the runtime, good on every machine that has the runtime.
    """

    signature: Signature
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cpu_flags: tuple[str, ...] = ()
    portable: bool = False


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """Load the payload that `compile` wrote, with the settings that it reported."""

    payload: str
    signature: Signature
    device: str
    precision: str = "fp32"
    threads: int | None = None
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OperatorsRequest:
    """Say what runs where: load the payload, run it on the tensors of the file `feed` (.npz)."""

    load: LoadRequest
    feed: str


@dataclass(frozen=True, kw_only=True)
class OperatorRun:
    """One operation of a run, as the runtime tells it.

    `name` and `operator` are the runtime's words; `nodes` are the ONNX nodes that it stands for,
    where that is known. `device` is where it ran, in the words of the target's own devices (`cpu`,
    `cuda`), `precision` the element type that
    it computed in (`fp32`, `fp16`, `bf16`, `int8`; empty where the runtime does not tell). `time_us`
    is the median over a few runs, None where the runtime does not time operations.
    """

    name: str
    operator: str
    nodes: tuple[str, ...] = ()
    device: str
    precision: str = ""
    time_us: float | None = None


class Bound(Protocol):
    """One inference on fixed input and output buffers, for repeated runs without copies.

    Where the model runs behind a connection, a call would be timed with its way there and back. Such
    a class also has `measure(iterations: int, duration_s: float | None) -> Sequence[int]`: it runs
    over and over where the model is, as `serving.measure` does here, and returns each latency in ns.
    """

    def __call__(self) -> None:
        """Run once and return when the outputs are there."""

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""


class Session(Protocol):
    """A loaded model that runs inference.

    Where that happens in another process than this one, the attribute `pid` names it: its memory and
    its load on the processor are then reported.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. `feed` has every input, right in dtype and shape."""

    def bind(self, feed: Mapping[str, Array]) -> Bound:
        """Fix the inputs; calling the result runs one inference on them."""

    def close(self) -> None:
        """Give back what the session holds."""


LoadFunction = Callable[[LoadRequest], Session]


def to_json(value: Any) -> Any:
    """Return `value` (a dataclass of this package, or what one holds) as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def from_json(kind: type[T], value: Any) -> T:
    """Return the JSON value `value` as a `kind`: the inverse of `to_json`.

    Raises TypeError or ValueError, naming the field, where it does not fit.
    """
    return typing.cast("T", _decode(kind, value, kind.__name__))


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in args:
            try:
                return _decode(choice, value, where)
            except (TypeError, ValueError):
                continue
        raise TypeError(f"{where}: {value!r} is no {kind}")
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where}: {value!r} is none of {', '.join(map(repr, args))}")
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise TypeError(f"{where}: expected an object, found {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}
        return kind(
            **{
                name: _decode(hints[name], item, f"{where}.{name}")
                for name, item in value.items()
                if name in known
            }
        )
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise TypeError(f"{where}: expected a list, found {type(value).__name__}")
        items = args if origin is tuple and args[-1] is not Ellipsis else (args[0],) * len(value)
        if len(items) != len(value):
            raise ValueError(f"{where}: expected {len(items)} items, found {len(value)}")
        return origin(
            _decode(item_kind, item, f"{where}[{i}]")
            for i, (item_kind, item) in enumerate(zip(items, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{where}: expected an object, found {type(value).__name__}")
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is type(None):
        if value is not None:
            raise TypeError(f"{where}: expected null")
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and (kind is bool) == isinstance(value, bool)
    ):
        return value
    raise TypeError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {value!r}")
