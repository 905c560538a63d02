"""A loop order for each kernel that needs no tuning: parallel outside, vectors and registers inside.

TVM lowers an operator to the plainest loops and leaves the rest to tuning; run as they are, they
are a hundred times slower than a hand-written library. What is done here is what holds for any
CPU: a tile of the output stays in vector registers while the sum runs, the tiles are spread over
the threads, and what follows (bias, activation) is computed on the tile before it is stored.
How wide and how high the tile is, and what is written out, are choices: the first of each is the
rule, the others are what tuning tries (`tuning.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import tvm

Option = TypeVar("Option")

# Loop iterations under which waking the threads costs more than it saves.
WORTH_THREADS = 1 << 14


class Choices:
    """What was chosen where the order of loops leaves a choice: the index of each option, in order.

    Beyond the end of `picked` the first option is taken, which is the rule. `sizes` becomes how
    many options there were, `work` how often the innermost statements of sums run.
    """

    def __init__(self, picked: Sequence[int] = ()) -> None:
        self.picked = tuple(picked)
        self.sizes: list[int] = []
        self.work = 0

    def pick(self, options: Sequence[Option]) -> Option:
        """Return the option chosen here; the first of equal ones counts."""
        distinct = list(dict.fromkeys(options))
        place = len(self.sizes)
        self.sizes.append(len(distinct))
        index = self.picked[place] if place < len(self.picked) else 0
        return distinct[min(index, len(distinct) - 1)]


def schedule(module: tvm.ir.IRModule, *, lanes: int, registers: int) -> tvm.ir.IRModule:
    """Return `module` with its kernels ordered for `registers` vectors of `lanes` float32.

    Half of the registers hold the output while the sum runs, for the operands need some too.
    A kernel that none of this fits, or that has its order already, stays as it is.
    """
    from tvm import tirx

    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and "tirx.is_scheduled" not in function.attrs:
            plan = ordered(function, lanes=lanes, registers=registers, choices=Choices())
            if plan is not None:
                module[name] = plan.mod["main"].with_attr("tirx.is_scheduled", True)
    return module


def ordered(function: Any, *, lanes: int, registers: int, choices: Choices) -> Any:
    """Return the schedule of the kernel, or None where it cannot be ordered like that."""
    from tvm import s_tir
    from tvm.s_tir.schedule import ScheduleError

    tile = registers // 2
    plan = s_tir.Schedule(function)
    try:
        blocks = plan.get_child_blocks(plan.get_sblock("root"))
        if any(not _is_plain(plan, block) for block in blocks):
            return None
        blocks = _inline(plan, blocks)
        done: set[str] = set()
        for block in blocks:
            name = plan.get(block).name_hint
            if name in done:
                continue
            if _kinds(plan, block).count("R"):
                done |= _order_sum(plan, block, lanes, tile, choices)
            else:
                _order_map(plan, block, lanes)
        return plan
    except ScheduleError:
        return None


def _kinds(plan: Any, block: Any) -> str:
    """Return one letter per axis of the block: S where outputs lie, R where a sum runs, ? else."""
    from tvm.tirx import IterVar

    letters = {IterVar.DataPar: "S", IterVar.CommReduce: "R"}
    return "".join(letters.get(axis.iter_type, "?") for axis in plan.get(block).iter_vars)


def _is_plain(plan: Any, block: Any) -> bool:
    """Say whether the block is one nest of loops, one per axis, with sums of fixed length."""
    loops = plan.get_loops(block)
    kinds = _kinds(plan, block)
    if "?" in kinds or len(loops) != len(kinds):
        return False
    if plan.get_child_blocks(block):
        return False
    return all(
        kind == "S" or _extent(plan, loop) is not None
        for loop, kind in zip(loops, kinds, strict=True)
    )


def _extent(plan: Any, loop: Any) -> int | None:
    value = getattr(plan.get(loop).extent, "value", None)
    return value if isinstance(value, int) else None


def _size(plan: Any, loop: Any) -> int:
    """Return the number of turns of the loop, 1 where it is known only at run time: never tiled."""
    return _extent(plan, loop) or 1


def _inline(plan: Any, blocks: list[Any]) -> list[Any]:
    """Fold element-wise steps into what reads them, and return the blocks that are left.

    A step that feeds a sum stays: it would be computed again for every term.
    """
    from tvm.s_tir.schedule import ScheduleError

    left = []
    for block in blocks:
        readers = plan.get_consumers(block)
        feeds_sum = any("R" in _kinds(plan, reader) for reader in readers)
        if readers and not feeds_sum and "R" not in _kinds(plan, block):
            try:
                plan.compute_inline(block)
                continue
            except ScheduleError:
                pass  # kept as a block of its own, which is right too
        left.append(block)
    return left


def _divisor(extent: int, most: int) -> int:
    """Return the largest divisor of `extent` up to `most`: a tile without a remainder."""
    return next(size for size in range(min(extent, most), 0, -1) if extent % size == 0)


def _width(extent: int, lanes: int) -> int:
    """Return how much of an axis to take as one vector: whole registers, or halves of them."""
    for size in (2 * lanes, lanes, lanes // 2, lanes // 4):
        if size > 1 and extent % size == 0:
            return size
    return _divisor(extent, lanes)


def _widths(extent: int, lanes: int, tile: int) -> list[int]:
    """Return how much of an axis to take at once: the rule's first, then other whole registers."""
    others = [count * lanes for count in (1, 2, 3, 4, 6, 8) if count <= tile]
    return [_width(extent, lanes), *(size for size in others if extent % size == 0)]


def _heights(extent: int, rows: int) -> list[int]:
    """Return how many rows to keep in registers: as many as there is room for, then others."""
    most = _divisor(extent, rows)
    others = [size for size in range(1, min(extent, 2 * rows) + 1) if extent % size == 0]
    return [most, *reversed(others)]


def _at_once(extent: int) -> list[int]:
    """Return how many terms of a sum to write out."""
    return [1, *(size for size in (2, 4, 8, 3, 5, 7) if extent % size == 0 and size <= extent)]


def _order_map(plan: Any, block: Any, lanes: int) -> None:
    """Order a block without a sum: vectors along the last axis, threads over the rest."""
    loops = plan.get_loops(block)
    if not loops:
        return
    total = 1
    for loop in loops:
        total *= _size(plan, loop)
    width = _width(_size(plan, loops[-1]), lanes)
    if width > 1:
        loops[-1], vector = plan.split(loops[-1], factors=[None, width])
        plan.vectorize(vector)
    fused = plan.fuse(*loops)
    if total >= WORTH_THREADS:
        plan.parallel(fused)


def _order_sum(plan: Any, block: Any, lanes: int, tile: int, choices: Choices) -> set[str]:
    """Order a sum and the step after it; return the names of the blocks that are done."""
    loops = plan.get_loops(block)
    kinds = _kinds(plan, block)
    space = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "S"]
    terms = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "R"]
    total = 1
    for loop in loops:
        total *= _size(plan, loop)
    choices.work += total
    name = plan.get(block).name_hint
    if not space:
        return {name}
    along, across = _axes(plan, block, kinds)
    inner = []
    outer = list(space)
    if along is not None:
        width = choices.pick(_widths(_size(plan, space[along]), lanes, tile))
        outer[along], vector = plan.split(space[along], factors=[None, width])
        rows = max(1, tile * lanes // max(width, lanes))
        if across is not None:
            height = choices.pick(_heights(_size(plan, space[across]), rows))
            outer[across], row = plan.split(space[across], factors=[None, height])
            inner.append(row)
        inner.append(vector)
        if choices.pick([False, True]):
            # what is loaded for one part of the last axis serves all of the image
            outer.insert(0, outer.pop(along))
    if len(terms) > 1 and choices.pick([False, True]):
        terms.insert(0, terms.pop())
    at_once = choices.pick(_at_once(_size(plan, terms[-1])))
    plan.reorder(*outer, *terms, *inner)
    if at_once > 1:
        terms[-1], few = plan.split(terms[-1], factors=[None, at_once])
        plan.unroll(few)
    fused = plan.fuse(*outer)
    done = {name}
    after = plan.get_consumers(block)
    if len(after) == 1 and _follows(plan, after[0], len(space)):
        tail = after[0]
        done.add(plan.get(tail).name_hint)
        plan.reverse_compute_at(tail, fused)
        plan.set_scope(block, 0, "local")
    else:
        tail = plan.cache_write(block, 0, "local")
        plan.reverse_compute_at(tail, fused)
    if total >= WORTH_THREADS:
        plan.parallel(fused)
    if inner:
        _lay(plan, inner)
    start = plan.decompose_reduction(block, terms[0])
    if inner:
        _lay(plan, plan.get_loops(tail)[1:])
        first = plan.get_loops(start)
        if len(first) > 1 and plan.get(first[-1]).kind == 0:
            _lay(plan, first[1:])
    return done


def _lay(plan: Any, tile: list[Any]) -> None:
    """Make the last loop of the tile one vector operation and write out the others."""
    for loop in tile[:-1]:
        plan.unroll(loop)
    if tile:
        plan.vectorize(tile[-1])


def _follows(plan: Any, block: Any, axes: int) -> bool:
    """Say whether the block maps the sum's output element by element, so that tiles fit."""
    return _kinds(plan, block) == "S" * axes


def _axes(plan: Any, block: Any, kinds: str) -> tuple[int | None, int | None]:
    """Return which output axes to lay along a vector, and across several of them.

    Along: the last axis, where some operand is read contiguously along it. Across: the widest
    other axis that this operand does not depend on, so that what was loaded is used again.
    """
    body = plan.get(block)
    axes = [axis.var for axis, kind in zip(body.iter_vars, kinds, strict=True) if kind == "S"]
    sizes = [
        getattr(axis.dom.extent, "value", 1)
        for axis, kind in zip(body.iter_vars, kinds, strict=True)
        if kind == "S"
    ]
    along = max((i for i, size in enumerate(sizes) if size > 1), default=None)
    if along is None:
        return None, None
    contiguous = [
        region
        for region in body.reads
        if region.region and _uses(region.region[-1].min, axes[along])
    ]
    if not contiguous:
        return None, None
    free = [
        i
        for i, size in enumerate(sizes)
        if i != along
        and size > 1
        and not any(_uses(part.min, axes[i]) for part in contiguous[0].region)
    ]
    return along, max(free, key=lambda i: sizes[i], default=None)


def _uses(expression: Any, variable: Any) -> bool:
    from tvm.s_tir.dlight.analysis import common_analysis

    used = common_analysis.collect_vars_used_in_prim_expr(expression)
    return any(each.same_as(variable) for each in used)
