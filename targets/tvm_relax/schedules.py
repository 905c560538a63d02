"""A loop order for each kernel that needs no tuning: parallel outside, vectors and registers inside.

TVM lowers an operator to the plainest loops and leaves the rest to tuning; run as they are, they
are a hundred times slower than a hand-written library. What is done here is what holds for any
CPU: a tile of the output stays in vector registers while the sum runs, the tiles are spread over
the threads, and what follows (bias, activation) is computed on the tile before it is stored.
Tuning still finds better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

# Loop iterations under which waking the threads costs more than it saves.
WORTH_THREADS = 1 << 14


def schedule(module: tvm.ir.IRModule, *, lanes: int, registers: int) -> tvm.ir.IRModule:
    """Return `module` with its kernels ordered for `registers` vectors of `lanes` float32.

    Half of the registers hold the output while the sum runs, for the operands need some too.

    A kernel that none of this fits stays as it is.
    """
    from tvm import tirx

    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            made = _kernel(function, lanes, registers // 2)
            if made is not None:
                module[name] = made
    return module


def _kernel(function: Any, lanes: int, tile: int) -> Any:
    """Return the kernel in its new order, or None where it cannot be ordered."""
    from tvm import s_tir
    from tvm.s_tir.schedule import ScheduleError

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
                done |= _order_sum(plan, block, lanes, tile)
            else:
                _order_map(plan, block, lanes)
        return plan.mod["main"].with_attr("tirx.is_scheduled", True)
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


def _order_sum(plan: Any, block: Any, lanes: int, tile: int) -> set[str]:
    """Order a sum and the step after it; return the names of the blocks that are done."""
    loops = plan.get_loops(block)
    kinds = _kinds(plan, block)
    space = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "S"]
    terms = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "R"]
    total = 1
    for loop in loops:
        total *= _size(plan, loop)
    name = plan.get(block).name_hint
    if not space:
        return {name}
    along, across = _axes(plan, block, kinds)
    inner = []
    outer = list(space)
    if along is not None:
        width = _width(_size(plan, space[along]), lanes)
        outer[along], vector = plan.split(space[along], factors=[None, width])
        rows = tile * lanes // max(width, lanes)
        if across is not None:
            height = _divisor(_size(plan, space[across]), rows)
            outer[across], row = plan.split(space[across], factors=[None, height])
            inner.append(row)
        inner.append(vector)
    plan.reorder(*outer, *terms, *inner)
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
