"""Paddle's own inference engine on the CPU: the reference for every conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.paddlepaddle import program
from deploykit._plugins.converters.paddlepaddle.ragged import LENGTHS, offsets
from deploykit._plugins.converters.paddlepaddle.repairs import interpolation_scales

from deploykit import progress
from deploykit.errors import PluginError
from deploykit.protocol import Signature

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.paddlepaddle.files import ModelFiles

    Array = np.ndarray[Any, Any]


def accepts(
    model: ModelFiles, loaded: program.Loaded, shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether Paddle runs inputs of `shapes` (batch 1) and gives outputs of batch 1."""
    import numpy as np

    predictor = create_for(model, loaded, None)
    for spec in loaded.inputs:
        handle = predictor.get_input_handle(spec.name)
        handle.copy_from_cpu(np.zeros(shapes[spec.name], dtype=spec.dtype))
    try:
        predictor.run()
    except Exception:  # Paddle's InvalidArgument, PreconditionNotMet, …: it does not accept
        return False
    found = [predictor.get_output_handle(name).shape() for name in predictor.get_output_names()]
    return all(shape[:1] == [1] for shape in found)


def create_for(model: ModelFiles, loaded: program.Loaded, threads: int | None) -> Any:
    """Load the model with `threads` (None: Paddle's default) for the CPU."""
    parameters = model.parameters(loaded.stored, loaded.stored)
    # Paddle 3.3's oneDNN kernels reject interpolations with the doubles that Paddle 3.3 writes
    plain = bool(interpolation_scales(loaded.document))
    return create(model, parameters, threads, without_onednn=plain)


def create(
    model: ModelFiles, parameters: Path | None, threads: int | None, *, without_onednn: bool = False
) -> Any:
    """Load a graph and its parameters with `threads` (None: Paddle's default) for the CPU."""
    program.import_paddle()
    progress.phase("loading into paddle.inference")
    from paddle import inference

    config = inference.Config(str(model.graph), str(parameters or ""))
    config.disable_glog_info()
    config.disable_gpu()
    if without_onednn:
        config.disable_mkldnn()
    if threads is not None:
        config.set_cpu_math_library_num_threads(threads)
    return inference.create_predictor(config)


class PaddleSession:
    """A model in `paddle.inference`; see `deploykit.protocol.Session`."""

    def __init__(self, predictor: Any, signature: Signature, release: Callable[[], None]) -> None:
        self._predictor: Any = predictor
        self._release = release
        self.inputs = signature.inputs
        self.outputs = signature.outputs

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        bound = self.bind(feed)
        bound()
        return bound.outputs()

    def bind(self, feed: Mapping[str, Array]) -> BoundPaddle:
        """Copy the inputs into Paddle's tensors; calling the result runs on them."""
        import numpy as np

        names = {spec.name for spec in self.inputs}
        for name in names:
            if name.endswith(LENGTHS) and name.removesuffix(LENGTHS) in names:
                continue
            array = np.ascontiguousarray(feed[name])
            handle = self._predictor.get_input_handle(name)
            # ascontiguousarray makes a scalar one-dimensional
            handle.copy_from_cpu(array.reshape(np.shape(feed[name])))
            if f"{name}{LENGTHS}" in names:
                handle.set_lod([offsets(feed[f"{name}{LENGTHS}"], len(array), name)])
        return BoundPaddle(self._predictor, [spec.name for spec in self.outputs])

    def close(self) -> None:
        """Give the predictor back, then call `release`."""
        self._predictor = None
        self._release()


class BoundPaddle:
    """Repeated inference on inputs that are already in Paddle's tensors."""

    def __init__(self, predictor: Any, names: list[str]) -> None:
        self._run = predictor.run
        self._handles = {name: predictor.get_output_handle(name) for name in names}

    def __call__(self) -> None:
        """Run once. Raises PluginError in one line where Paddle rejects the inputs."""
        try:
            self._run()
        except Exception as error:  # PADDLE_THROW's classes have no common base; pages of traceback
            raise PluginError(f"Paddle: {program.first_line(error)}") from error

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return {name: handle.copy_to_cpu() for name, handle in self._handles.items()}
