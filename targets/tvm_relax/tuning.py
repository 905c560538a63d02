"""Finds better orders of loops by trying them, within a budget of time, and keeps what it found.

The space is that of `schedules.py`: the rule, and around it other tiles, other orders, more written
out. Each kernel's rule is measured first; then the kernel that takes most of the model's time and
was tried least gets the next batch, half of it drawn at random and half made by changing one choice
of the best so far. What is measured is written down at once, so an interrupted run loses nothing.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tvm_relax import schedules
from deploykit._plugins.targets.tvm_relax.measuring import Stopwatch

from deploykit.progress import phase

if TYPE_CHECKING:
    import tvm
    from deploykit._plugins.targets.tvm_relax.machine import Processor
    from deploykit._plugins.targets.tvm_relax.records import Records

BATCH = 6
# Of one kernel; what is not found by then is not in the space.
MOST_TRIALS = 96
# Kernels under this part of the model's time are left as the rule has them.
WORTH_TRYING = 0.005


@dataclass
class Kernel:
    """One kernel that occurs `calls` times in the model."""

    name: str
    function: Any
    module: tvm.ir.IRModule
    calls: int
    best: float | None = None
    tried: dict[tuple[int, ...], float | None] = field(default_factory=dict)
    known: int = 0
    """Trials of earlier runs."""
    sizes: tuple[int, ...] = ()
    work: int = 0
    """How often the innermost statements of its sums run in one call."""
    exhausted: bool = False

    @property
    def trials(self) -> int:
        """How many orders were measured, now and earlier."""
        return self.known + len(self.tried)

    @property
    def cost(self) -> float:
        """The kernel's part of the model's time in seconds."""
        return self.calls * (self.best or 0.0)


def kernels_of(module: tvm.ir.IRModule) -> list[Kernel]:
    """Return the kernels of the module that sum something, with how often each is called."""
    import tvm
    from tvm import relax, tirx

    calls: dict[str, int] = {}

    def count(value: Any) -> None:
        if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
            name = value.args[0].name_hint
            calls[name] = calls.get(name, 0) + 1

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, count)
    found = []
    for variable, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc) or variable.name_hint not in calls:
            continue
        named = function.with_attr("global_symbol", "main")
        found.append(
            Kernel(
                name=variable.name_hint,
                function=function,
                module=tvm.IRModule({"main": named}),
                calls=calls[variable.name_hint],
            )
        )
    return found


def _is_sized(function: Any) -> bool:
    """Say whether all sizes of the kernel are known: only then can it be run by itself."""
    return all(
        hasattr(buffer, "shape") and all(hasattr(size, "value") for size in buffer.shape)
        for buffer in function.params
    )


class Tuning:
    """One search over the kernels of a model, until `seconds` are over."""

    def __init__(
        self, processor: Processor, records: Records, seconds: float, *, least_work: int = 0
    ) -> None:
        self.processor = processor
        self.least_work = least_work
        self.records = records
        self.seconds = seconds
        self.trials = 0
        self._random = random.Random(0)
        self._watch = Stopwatch(processor.target)

    def run(self, module: tvm.ir.IRModule) -> float:
        """Fill the records for the kernels of `module`; return the seconds that it took."""
        started = time.monotonic()
        self._search(module, started)
        return time.monotonic() - started

    def _search(self, module: tvm.ir.IRModule, started: float) -> None:
        budget = round(self.seconds)

        def spent() -> bool:
            gone = time.monotonic() - started
            phase("tuning", min(budget, round(gone)), budget)
            return gone >= self.seconds

        try:
            kernels = [each for each in kernels_of(module) if self._begin(each)]
            if sum(kernel.calls * kernel.work for kernel in kernels) < self.least_work:
                return
            for kernel in kernels:
                if spent():
                    return
                if kernel.best is None:
                    self._try(kernel, ())
            while not spent():
                chosen = self._next(kernels)
                if chosen is None:
                    return
                for picked in self._batch(chosen):
                    self._try(chosen, picked)
                    if spent():
                        return
        finally:
            self._watch.stop()

    def _begin(self, kernel: Kernel) -> bool:
        """Take over what is known of the kernel; say whether it has a choice at all."""
        choices = schedules.Choices()
        if not _is_sized(kernel.function) or self._plan(kernel, choices) is None:
            return False
        if max(choices.sizes, default=1) == 1:
            return False
        kernel.sizes = tuple(choices.sizes)
        kernel.work = choices.work
        kernel.best = self.records.seconds(kernel.module)
        kernel.known = self.records.trials(kernel.module)
        return True

    def _plan(self, kernel: Kernel, choices: schedules.Choices) -> Any:
        return schedules.ordered(
            kernel.module["main"],
            lanes=self.processor.lanes,
            registers=self.processor.registers,
            choices=choices,
        )

    def _next(self, kernels: list[Kernel]) -> Kernel | None:
        whole = sum(kernel.cost for kernel in kernels)
        open_ones = [
            kernel
            for kernel in kernels
            if not kernel.exhausted
            and kernel.trials < MOST_TRIALS
            and kernel.cost > WORTH_TRYING * whole
        ]
        return max(open_ones, key=lambda each: each.cost / (1 + each.trials), default=None)

    def _batch(self, kernel: Kernel) -> list[tuple[int, ...]]:
        """Return choices that were not tried yet; without any the kernel is exhausted."""
        timed = {key: value for key, value in kernel.tried.items() if value is not None}
        best = min(timed, key=lambda key: timed[key], default=())
        made: list[tuple[int, ...]] = []
        for number in range(20 * BATCH):
            sizes = kernel.sizes
            if number % 2 and best:
                changed = list(best)
                place = self._random.randrange(len(sizes))
                changed[place] = self._random.randrange(sizes[place])
                picked = tuple(changed)
            else:
                picked = tuple(self._random.randrange(size) for size in sizes)
            if picked not in kernel.tried and picked not in made:
                made.append(picked)
            if len(made) == BATCH:
                break
        kernel.exhausted = not made
        return made

    def _try(self, kernel: Kernel, picked: tuple[int, ...]) -> None:
        picked = picked or (0,) * len(kernel.sizes)
        choices = schedules.Choices(picked)
        plan = self._plan(kernel, choices)
        seconds = self._watch.seconds(plan.mod) if plan is not None else None
        kernel.tried[picked] = seconds
        self.trials += 1
        if seconds is None:
            return
        self.records.add(kernel.module, plan.trace, seconds)
        if kernel.best is None or seconds < kernel.best:
            kernel.best = seconds


def applied(module: tvm.ir.IRModule, records: Records) -> tuple[tvm.ir.IRModule, int, int]:
    """Return `module` with the best known order of each kernel; how many have one, and of how many.

    Kernels without a record are left as they are, for the rule.
    """
    from tvm import s_tir
    from tvm.s_tir.schedule import ScheduleError

    kernels = kernels_of(module)
    known = 0
    for kernel in kernels:
        trace = records.trace(kernel.module)
        if trace is None:
            continue
        plan = s_tir.Schedule(kernel.function)
        try:
            trace.apply_to_schedule(plan, remove_postproc=False)
        except ScheduleError:
            continue  # a record of another release: the rule takes over
        module[kernel.name] = plan.mod["main"].with_attr("tirx.is_scheduled", True)
        known += 1
    return module, known, len(kernels)
