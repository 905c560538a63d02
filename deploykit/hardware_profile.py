"""What a hardware profile says of a device: plain values, each figure with its source."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from deploykit.protocol import Hardware, to_json

SCHEMA = 1
"""Of the profiles' TOML files; `hardware_reading` and `hardware_writing` know it."""

KINDS = ("cpu", "board", "phone", "gpu", "npu", "browser")

DEVICES = ("cpu", "gpu", "npu")

APIS = (
    *("cpu", "cuda", "vulkan", "metal", "opencl", "level-zero", "directml", "webgpu", "wasm"),
    *("coreml", "nnapi", "qnn", "rknn"),
)
"""By which a program reaches a device."""

BYTES_OF = {
    "fp64": 8.0,
    "fp32": 4.0,
    "tf32": 4.0,  # as it lies in memory
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
}
"""Element type to its size in memory."""

FORMULA_TOLERANCE = 0.01
"""How far a value may be from its formula, relatively: data sheets round."""

_TERM = re.compile(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)(?: [A-Za-z][\w/-]*)*\s*")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a figure is from: a document that somebody else can find.

    `date` is of the document (`2023`, `2023-10`, `2023-10-05`), `document` its number or version;
    one of them is there.
    """

    title: str
    publisher: str
    date: str = ""
    document: str = ""
    url: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.publisher, self.title, self.document, self.date)))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number and the sources (keys of `Profile.sources`) that it is from.

    `formula` says how it was computed, `4 cores * 2.4e9 Hz * 16 FLOP`; see `product_of`. `note`
    says under which conditions it holds.
    """

    value: float
    sources: tuple[str, ...]
    formula: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What computes: the processor's cores, the graphics processor, the neural one.

    `peak_ops_per_s` has, by element type, how many operations a second the device could do at
    most; a multiplication with its addition counts as two, and sparsity is not counted.
    `bandwidth_bytes_per_s` is of its memory, reading and writing together. `memory_bytes` is the
    memory of its own, None where it shares the machine's.
    """

    title: str
    apis: tuple[str, ...]
    architecture: str = ""
    """In the vendor's words, as compilers take it: `sm_87`."""
    memory_bytes: Figure | None = None
    bandwidth_bytes_per_s: Figure | None = None
    peak_ops_per_s: dict[str, Figure] = field(default_factory=dict)

    def values_per_s(self, dtype: str) -> float | None:
        """Return how many elements of type `dtype` its memory moves a second, None where unknown."""
        bandwidth = self.bandwidth_bytes_per_s
        return None if bandwidth is None else bandwidth.value / BYTES_OF[dtype]

    def ops_per_byte(self, dtype: str) -> float | None:
        """Return at how many operations for each byte moved arithmetic, not memory, is the limit.

        The ridge of the roofline (Williams, Waterman, Patterson 2009); None where one of the two
        rates is unknown.
        """
        peak, bandwidth = self.peak_ops_per_s.get(dtype), self.bandwidth_bytes_per_s
        return None if peak is None or bandwidth is None else peak.value / bandwidth.value


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a cloud asks for an hour of it: list price, on demand, with no commitment.

    `share` is how much of the profile's hardware the instance has: 8 where it has eight of the
    GPUs, 0.5 where it has half of the cores.
    """

    provider: str
    instance: str
    region: str
    usd_per_hour: float
    share: float
    sources: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One device that people deploy to.

    `triple`, `cpu` and `features` are LLVM's words, `flags` the kernel's for the instruction sets
    that inference kernels choose by. `cores` are those that a model should use (of a phone the fast
    ones), `threads` their hardware threads where those are more. `power_w` is what the vendor
    states, of a chip or of a board; its note says which.
    """

    name: str
    summary: str
    kind: str
    triple: str
    cpu: str = ""
    features: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    cores: Figure | None = None
    threads: Figure | None = None
    memory_bytes: Figure | None = None
    power_w: Figure | None = None
    devices: dict[str, Device] = field(default_factory=dict)
    prices: tuple[Price, ...] = ()
    sources: dict[str, Source] = field(default_factory=dict)

    @property
    def usd_per_hour(self) -> float | None:
        """The least that an hour of all of this hardware costs, None where no cloud rents it."""
        return min((price.usd_per_hour / price.share for price in self.prices), default=None)

    @property
    def gpu(self) -> str:
        """The architecture of its graphics processor (`sm_87`), empty where there is none."""
        return self.devices["gpu"].architecture if "gpu" in self.devices else ""

    def to_request(self) -> Hardware:
        """Return what a target needs to know to compile for it."""
        return Hardware(
            name=self.name,
            triple=self.triple,
            cpu=self.cpu,
            features=self.features,
            cores=None if self.cores is None else int(self.cores.value),
            gpu=self.gpu,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the profile as plain JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def product_of(formula: str) -> float:
    """Return what `formula` comes to: products of numbers with their units, summed.

    `4 cores * 2.4e9 Hz * 16 FLOP + 4 cores * 1.8e9 Hz * 8 FLOP`. Raises ValueError where it is
    anything else.
    """
    total = 0.0
    for product in formula.split("+"):
        value = 1.0
        for term in product.split("*"):
            number = _TERM.fullmatch(term)
            if number is None:
                raise ValueError(f"{term.strip()!r} is no number with its unit")
            value *= float(number[1])
        total += value
    return total
