"""From the ONNX file to TVM's compiled module: folded, imported, lowered, scheduled, compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit._plugins.targets.tvm_relax import graphs, machine, schedules

from deploykit.errors import UnsupportedError
from deploykit.progress import phase
from deploykit.protocol import CompileRequest, TensorSpec


class Building:
    """One model on its way to `processor`; `notes` gathers what the user must know.

    `here` is the processor that we run on: a graph of dynamic sizes is tried there.
    """

    def __init__(
        self,
        request: CompileRequest,
        settings: Mapping[str, str],
        processor: machine.Processor,
        here: machine.Processor,
    ) -> None:
        self.request = request
        self.settings = settings
        self.processor = processor
        self.here = here
        self.notes: list[str] = []

    def library(self, inputs: tuple[TensorSpec, ...]) -> tuple[Any, Any, tuple[TensorSpec, ...]]:
        """Return the compiled module, the ONNX model it came from, and the inputs it takes.

        Some graphs of dynamic sizes compile and then cannot run: they are run once, compiled for
        this machine where the target is another one. Those that cannot get a batch of one.
        """
        dynamic = graphs.dynamic_axes(inputs)
        if not dynamic:
            return *self._compiled(inputs, self.processor), inputs
        try:
            library, model = self._compiled(inputs, self.here)
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
            if self.processor is not self.here:
                library, model = self._compiled(inputs, self.processor)
            self.notes.append(
                f"{', '.join(dynamic)} may have any size; "
                "fixed sizes let TVM order the loops better"
            )
            return library, model, inputs
        library, model = self._compiled(fixed, self.processor)
        self.notes.append(f"TVM cannot keep {', '.join(dynamic)} dynamic: fixed to 1 ({reason})")
        return library, model, fixed

    def _compiled(
        self, inputs: tuple[TensorSpec, ...], processor: machine.Processor
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
        with processor.target:
            if self.request.precision == "fp16":
                module = graphs.in_float16(module)
                self.notes += machine.half_precision_notes(processor)
            phase("lowering")
            module = tvm.transform.Sequential(passes)(module)
            if self.settings["schedule"] == "fixed":
                module = schedules.schedule(
                    module, lanes=processor.lanes, registers=processor.registers
                )
        phase("compiling")
        with tvm.transform.PassContext(opt_level=3):
            return tvm.compile(module, processor.target), model
