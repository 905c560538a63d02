"""From the ONNX file to TVM's compiled module: folded, imported, lowered, scheduled, compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit._plugins.targets.tvm_relax import (
    cuda,
    graphs,
    layout,
    machine,
    records,
    schedules,
    tuning,
)

from deploykit.errors import UnsupportedError
from deploykit.progress import phase
from deploykit.protocol import CompileRequest, TensorSpec

# Additions and products under which a model is too fast to be worth tuning unasked.
WORTH_TUNING = 10_000_000

PLAIN = "built without tuning: 40 to 140 times slower than a hand-written runtime is usual"


class Building:
    """One model on its way to `processor`; `notes` gathers what the user must know.

    `here` is the processor that we run on: a graph of dynamic sizes is tried there. `gpus` names
    the architectures of GPUs where the kernels are for those.
    """

    def __init__(
        self,
        request: CompileRequest,
        settings: Mapping[str, str],
        processor: machine.Processor,
        here: machine.Processor,
        gpus: tuple[str, ...] = (),
    ) -> None:
        self.request = request
        self.settings = settings
        self.processor = processor
        self.here = here
        self.gpus = gpus
        self.notes: list[str] = []
        self._seconds = float(settings["tune"])

    def library(self, inputs: tuple[TensorSpec, ...]) -> tuple[Any, Any, tuple[TensorSpec, ...]]:
        """Return the compiled module, the ONNX model it came from, and the inputs it takes.

        Some graphs of dynamic sizes compile and then cannot run: they are run once, compiled for
        this machine where the target is another one. Those that cannot get a batch of one.
        """
        dynamic = graphs.dynamic_axes(inputs)
        if not dynamic:
            return *self._compiled(inputs, self.processor, self.gpus), inputs
        try:
            library, model = self._compiled(inputs, self.here, ())
            phase("trying dynamic sizes")
            graphs.try_run(library, model, inputs)
        except MemoryError:
            raise
        except Exception as error:
            # whatever TVM raises here (it has no class of its own): sizes unknown at compile time
            fixed = graphs.with_batch_of_one(inputs)
            if fixed is None and isinstance(error, UnsupportedError):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            if fixed is None:
                raise UnsupportedError(
                    f"target tvm cannot keep {', '.join(dynamic)} dynamic: {reason}",
                    hint="give their sizes with --shape",
                ) from error
        else:
            if self.gpus or self.processor is not self.here:
                library, model = self._compiled(inputs, self.processor, self.gpus)
            self.notes.append(
                f"{', '.join(dynamic)} may have any size; "
                "fixed sizes let TVM order the loops better"
            )
            return library, model, inputs
        library, model = self._compiled(fixed, self.processor, self.gpus)
        self.notes.append(f"TVM cannot keep {', '.join(dynamic)} dynamic: fixed to 1 ({reason})")
        return library, model, fixed

    def _compiled(
        self,
        inputs: tuple[TensorSpec, ...],
        processor: machine.Processor,
        gpus: tuple[str, ...],
    ) -> tuple[Any, Any]:
        phase("folding the graph")
        model = graphs.folded(self.request.model, inputs)
        graphs.check_operators(model)
        phase("importing the graph")
        module = graphs.imported(model)
        import tvm
        from tvm import relax

        passes = [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            relax.get_pipeline("zero"),
        ]
        self.notes = []
        target = cuda.target(processor, gpus) if gpus else processor.target
        by_rule = self.settings["schedule"] == "fixed"
        with target:
            if self.request.precision == "fp16":
                module = graphs.in_float16(module)
                self.notes += machine.half_precision_notes(None if gpus else processor)
            if by_rule and not gpus:
                module = layout.channels_last(module)
            phase("lowering")
            module = tvm.transform.Sequential(passes)(module)
            if gpus:
                # a GPU needs each loop bound to its threads, whatever the setting
                module = cuda.scheduled(module)
                self.notes.insert(0, f"code for {', '.join(gpus)}; {cuda.UNTUNED}")
            elif by_rule:
                module = self._scheduled(module, processor)
            else:
                self.notes.insert(0, PLAIN)
        phase("compiling")
        with tvm.transform.PassContext(opt_level=3):
            return tvm.compile(module, target), model

    def _scheduled(self, module: Any, processor: machine.Processor) -> Any:
        """Return the module with each kernel in the best order known, after tuning where asked."""
        known = records.Records(processor)
        try:
            trials = self._tuned(module, processor, known)
            module, found, kernels = tuning.applied(module, known)
        finally:
            known.close()
        self.notes.insert(0, self._note(processor, trials, found, kernels))
        return schedules.schedule(module, lanes=processor.lanes, registers=processor.registers)

    def _tuned(self, module: Any, processor: machine.Processor, known: records.Records) -> int:
        """Spend what is left of the budget; return how many orders of loops were tried."""
        if self._seconds <= 0 or processor is not self.here or not self._stays_here:
            return 0
        asked = "tune" in self.request.settings
        search = tuning.Tuning(
            processor, known, self._seconds, least_work=0 if asked else WORTH_TUNING
        )
        self._seconds -= search.run(module)
        return search.trials

    @property
    def _stays_here(self) -> bool:
        """Whether this machine's processor runs the kernels."""
        return self.processor is self.here and not self.gpus

    def _note(self, processor: machine.Processor, trials: int, found: int, kernels: int) -> str:
        """Say how the loops were ordered: the user must know what was not tuned."""
        rest = f"{found} of {kernels} kernels by records, the others by rule"
        if processor.triple is not None:
            return f"not tuned: another machine's kernels cannot be timed here; {rest}"
        if trials:
            return f"tuned by {trials} trials (tune={self.settings['tune']} seconds); {rest}"
        if float(self.settings["tune"]) == 0:
            return f"built without tuning (tune=0); {rest}"
        return f"nothing left to tune; {rest}" if found else f"too small to be worth tuning; {rest}"
