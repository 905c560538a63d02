"""How long one kernel takes, measured in a process of its own: a candidate may crash or hang."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tvm

# The least of the calls counts, for what a machine does besides only ever adds.
MOST_CALLS = 40
LEAST_CALLS = 3
SECONDS_OF_CALLS = 0.05
PATIENCE_SECONDS = 30
START_SECONDS = 300


class Stopwatch:
    """A process that compiles and times kernels, one at a time; started again after a failure."""

    def __init__(self, target: tvm.target.Target) -> None:
        self._target = target
        self._process: Any = None
        self._channel: Any = None

    def seconds(self, module: tvm.ir.IRModule) -> float | None:
        """Return the seconds of one call of `main`, None where it cannot be compiled or run."""
        import tvm

        patience = PATIENCE_SECONDS
        if self._process is None:
            self._start()
            patience = START_SECONDS
        try:
            self._channel.send((tvm.ir.save_json(module), dict(self._target.export())))
            if self._channel.poll(patience):
                found: float | None = self._channel.recv()
                return found
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # the candidate killed the process
        self.stop()
        return None

    def _start(self) -> None:
        # spawned: TVM's threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        self._channel, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._channel.close()
            self._process = None


def serve(channel: Connection) -> None:
    """Time what comes until the other end closes: `(module as JSON, target)`, answered by seconds."""
    # Ctrl-C is for the parent, which ends this process
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    while True:
        try:
            text, target = channel.recv()
        except EOFError:
            return
        channel.send(_time(text, target))


def _time(text: str, target: dict[str, Any]) -> float | None:
    import numpy as np
    import tvm
    from tvm.error import InternalError

    module = tvm.ir.load_json(text)
    function = module["main"]
    source = np.random.default_rng(0)
    try:
        arguments = [
            tvm.runtime.tensor(
                source.random([int(size) for size in buffer.shape]).astype(str(buffer.dtype))
            )
            for buffer in function.params
        ]
        built = tvm.compile(module, tvm.target.Target(target))
        library = built.jit() if hasattr(built, "jit") else built

        def least(calls: int) -> float:
            timed = library.time_evaluator("main", tvm.cpu(), number=1, repeat=calls)
            return float(min(timed(*arguments).results))

        first = least(LEAST_CALLS)
        more = int(SECONDS_OF_CALLS / max(first, 1e-7))
        return first if more <= LEAST_CALLS else min(first, least(min(more, MOST_CALLS)))
    except (InternalError, RuntimeError, TypeError, ValueError):
        return None
