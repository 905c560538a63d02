"""Space into channels or into the batch, and back, as ONNX nodes."""

from __future__ import annotations

import math
from typing import Any

from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.mapping_elementwise import Emit, plain
from deploykit._plugins.converters.tflite.mapping_shapes import cut_out, known
from deploykit._plugins.converters.tflite.reading import Operator, Tensor


def _blocks(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    size = op.options["block"]
    if x.rank != 4 or size < 1:
        raise m.refuse(f"its input has {x.rank} axes, its block is {size}")
    batch = m.apart(x, [1, 2, 3])
    n, h, w, c = x.shape
    if op.kind == "DEPTH_TO_SPACE":
        name = m.add("DepthToSpace", plain(m, x, first=True), blocksize=size, mode="DCR")
        shape = [n, h * size, w * size, c // size**2]
    else:
        name = m.add("SpaceToDepth", plain(m, x, first=True), blocksize=size)
        shape = [n, h // size, w // size, c * size**2]
    return [m.made(outs[0], name, batch=batch, shape=shape, first=True)]


def _space_to_batch(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SPACE_TO_BATCH_ND; blocks come outermost, so that the batch is no longer."""
    x = ins[0]
    block, amounts = known(m, ins[1], "the block"), known(m, ins[2], "the padding")
    count = len(block)
    pads = [0, *amounts[0::2], *[0] * (x.rank - 1 - count)]
    pads += [0, *amounts[1::2], *[0] * (x.rank - 1 - count)]
    name = plain(m, x)
    if any(pads):
        name = m.add("Pad", name, m.sizes(pads))
    sizes = [x.shape[at + 1] + sum(amounts[2 * at : 2 * at + 2]) for at in range(count)]
    rest = list(x.shape[count + 1 :])
    if min(block) < 1 or any(n % b for n, b in zip(sizes, block, strict=True)):
        raise ValueError(f"blocks of {block} in {sizes}")
    if x.batch is not None and (x.batch != 0 or x.shape[0] != 1):
        raise m.fixed("has the batch on another axis than the first")
    lead = -1 if x.batch is not None else x.shape[0]
    split = [one for n, b in zip(sizes, block, strict=True) for one in (n // b, b)]
    name = m.add("Reshape", name, m.sizes([lead, *split, *rest]))
    inner = [2 * at + 1 for at in range(count)]
    tail = list(range(2 * count + 1, 2 * count + 1 + len(rest)))
    # for a batch of one, blocks before or after it are the same: after keeps its members together
    own = [0, *[at + 1 for at in inner]] if x.batch is not None else [*[at + 1 for at in inner], 0]
    name = m.add("Transpose", name, perm=[*own, *inner, *tail])
    whole = -1 if x.batch is not None else x.shape[0] * math.prod(block)
    target = [whole, *(n // b for n, b in zip(sizes, block, strict=True)), *rest]
    shape = (x.shape[0] * math.prod(block), *target[1:])
    return [m.made(outs[0], m.add("Reshape", name, m.sizes(target)), batch=x.batch, shape=shape)]


def _batch_to_space(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    block, crops = known(m, ins[1], "the block"), known(m, ins[2], "the crops")
    count, blocks = len(block), math.prod(known(m, ins[1], "the block"))
    rest = list(x.shape[count + 1 :])
    if min(block) < 1 or x.shape[0] % blocks:
        raise ValueError(f"blocks of {block} from a batch of {x.shape[0]}")
    own = x.shape[0] // blocks
    if x.batch is not None and (x.batch != 0 or own != 1):
        raise m.fixed("has the batch on another axis than the first")
    space = list(x.shape[1 : count + 1])
    kept = x.batch is not None
    lead = [-1, *block] if kept else [*block, own]
    name = m.add("Reshape", plain(m, x), m.sizes([*lead, *space, *rest]))
    order = [0 if kept else count]
    for at in range(count):
        order += [count + 1 + at, at + 1 if kept else at]
    order += list(range(2 * count + 1, 2 * count + 1 + len(rest)))
    name = m.add("Transpose", name, perm=order)
    wide = [n * b for n, b in zip(space, block, strict=True)]
    name = m.add("Reshape", name, m.sizes([-1 if kept else own, *wide, *rest]))
    axes = [at for at in range(count) if crops[2 * at] or crops[2 * at + 1]]
    starts = [crops[2 * at] for at in axes]
    ends = [wide[at] - crops[2 * at + 1] for at in axes]
    name = cut_out(m, name, [at + 1 for at in axes], starts, ends)
    cut = [n - crops[2 * at] - crops[2 * at + 1] for at, n in enumerate(wide)]
    return [m.made(outs[0], name, batch=x.batch, shape=(own, *cut, *rest))]


EMIT: dict[str, Emit] = {
    "SPACE_TO_DEPTH": _blocks,
    "DEPTH_TO_SPACE": _blocks,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
}
