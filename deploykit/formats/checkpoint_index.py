"""The index of a TensorFlow checkpoint (`.index`): names, shapes and places of its variables.

It is a LevelDB table of BundleEntryProto messages:
https://github.com/google/leveldb/blob/main/doc/table_format.md
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/tensor_bundle.proto
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged, size_of
from deploykit.formats.protobuf_wire import fields, message, number, varint
from deploykit.formats.reading import FormatError
from deploykit.formats.snappy import unpack
from deploykit.formats.tensorflow_graph import Shape, dtype_name, shape

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48
KIND = "TensorFlow checkpoint index"
MOST_SHARDS = 10_000
LONGEST_NAME = 1 << 16
BOOKKEEPING = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/", "optimizer/", "_temporary/")
SLOTS = ("/Adam", "/Adam_1", "/Momentum", "/RMSProp", "/RMSProp_1", "/Adagrad", "global_step")


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One stored variable: `size` bytes at `offset` of shard number `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int

    @property
    def is_weight(self) -> bool:
        """Whether it belongs to the model, and not to its training or saving."""
        return (
            self.dtype not in ("string", "int64", "bool", "variant", "resource")
            and not self.name.startswith(BOOKKEEPING)
            and ".OPTIMIZER_SLOT" not in self.name
            and not self.name.endswith(SLOTS)
        )


def recognises(content: Content) -> bool:
    """Whether the file ends as a LevelDB table does."""
    return content.size >= FOOTER and content.view[-8:] == MAGIC


def read_index(content: Content) -> tuple[Variable, ...]:
    """Return the variables of a checkpoint.

    Raises SourceError where the index is damaged, or a shard is missing or shorter than it says.
    """
    view = content.view
    try:
        if not recognises(content):
            raise FormatError("it does not end as a table does")
        footer = view[-FOOTER:]
        at = 0
        for _ in range(2):
            _, at = varint(footer, at)
        offset, at = varint(footer, at)
        size, at = varint(footer, at)
        found: list[Variable] = []
        count = 1
        for _, handle in _block(view, offset, size):
            place, after = varint(handle, 0)
            length, _ = varint(handle, after)
            for name, value in _block(view, place, length):
                if name:
                    found.append(_entry(name, value))
                else:
                    count = next((number(one) for key, one in fields(value) if key == 1), 0)
    except FormatError as error:
        raise damaged(content.path, KIND, error) from error
    if not 0 <= count <= MOST_SHARDS:
        raise damaged(content.path, KIND, f"it has {count} shards")
    _check_shards(content.path, count, found)
    return tuple(found)


def _block(view: memoryview, offset: int, size: int) -> Iterator[tuple[str, memoryview]]:
    """Yield the keys and values of one block: keys share prefixes with the one before."""
    if offset + size + 5 > len(view) or size < 4:
        raise FormatError(f"a block of {size} bytes at byte {offset} reaches beyond the end")
    packing = view[offset + size]
    if packing > 1:
        raise FormatError(f"a block is packed in an unknown way ({packing})")
    block = view[offset : offset + size]
    if packing == 1:
        block = memoryview(unpack(block))
        size = len(block)
    if size < 4:
        raise FormatError("a block has no end")
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise FormatError(f"a block of {size} bytes has {restarts} restarts")
    key = b""
    at = 0
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        if at + fresh + length > end or shared > len(key) or shared + fresh > LONGEST_NAME:
            raise FormatError(f"an entry at byte {offset + at} reaches beyond its block")
        key = key[:shared] + bytes(block[at : at + fresh])
        yield key.decode("utf-8", "replace"), block[at + fresh : at + fresh + length]
        at += fresh + length


def _entry(name: str, value: memoryview) -> Variable:
    dtype = "unknown"
    sizes: Shape = ()
    numbers = {3: 0, 4: 0, 5: 0}
    for key, part in fields(value):
        if key == 1:
            dtype = dtype_name(number(part))
        elif key == 2:
            sizes = shape(message(part))
        elif key in numbers:
            numbers[key] = number(part)
    return Variable(
        name=name,
        dtype=dtype,
        shape=tuple(size for size in sizes or () if isinstance(size, int)),
        shard=numbers[3],
        offset=numbers[4],
        size=numbers[5],
    )


def shards(index: Path) -> list[Path]:
    """Return the data files that stand beside the index, in their order."""
    prefix = index.name.removesuffix(".index")
    return sorted(
        path for path in index.parent.glob("*.data-*") if path.name.startswith(f"{prefix}.data-")
    )


def _check_shards(index: Path, count: int, variables: list[Variable]) -> None:
    needed = [0] * count
    for one in variables:
        if not 0 <= one.shard < count:
            raise damaged(index, KIND, f"`{one.name}` is in shard {one.shard} of {count}")
        needed[one.shard] = max(needed[one.shard], one.offset + one.size)
    prefix = index.name.removesuffix(".index")
    for position, size in enumerate(needed):
        path = index.parent / f"{prefix}.data-{position:05d}-of-{count:05d}"
        if not path.is_file():
            raise SourceError(
                f"the weights of `{index}` are missing: there is no `{path.name}` beside it",
                hint=f"copy `{path.name}` into `{path.parent}`",
            )
        if (found := size_of(path)) < size:
            raise SourceError(
                f"`{path}` is truncated: {found} bytes where its index needs {size}",
                hint="copy or download it again",
            )
