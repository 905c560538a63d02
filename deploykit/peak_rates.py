"""How fast this machine computes and moves memory at best: one measurement, in a process of its own.

    python peak_rates.py '{"library": "numpy", "dtype": "fp32", "threads": 2, …}'

writes one line of JSON to stdout. A process, because libraries read their number of threads and
their choice of kernels when they are loaded. It is run as a file: standard library, numpy, onnx and
ONNX Runtime only. What it computes are matrix products, the operation that libraries are tuned for,
and passes over arrays larger than the caches.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SMALLEST, LARGEST = 256, 8192
"""Rows of the matrices, which are square."""
AIM_S = 0.03
"""So long one product shall take: long against the call, short against the patience of the user."""
FEWEST, MOST = 5, 200
"""Repetitions."""

NUMPY = {"fp32": "float32", "fp64": "float64"}


def products(
    *, library: str, dtype: str, threads: int, budget_s: float, memory_bytes: int
) -> dict[str, Any]:
    """Return the seconds of repeated matrix products of `dtype`, and what computed them.

    The size grows until one product takes `AIM_S`, as long as the operands fit in `memory_bytes`.
    The size that was fastest counts: on a busy machine that is a small one, done before the
    scheduler takes a core away.
    """
    make = _numpy_product if library == "numpy" else _onnxruntime_product
    most = min(LARGEST, (memory_bytes / (4 * 8)) ** 0.5)  # three operands and a packed one
    answers = []
    rows, larger = 0, SMALLEST
    while larger > rows:
        rows = larger
        run, about = make(rows, dtype, threads)
        run()
        seconds = [_timed(run) for _ in range(FEWEST)]
        # no further than twice: a small product says little of a large one
        larger = int(min(rows * (AIM_S / min(seconds)) ** (1 / 3), most, 2 * rows)) // 128 * 128
        if larger <= rows:
            seconds += _repeat(run, budget_s)
        answers.append(
            {
                "seconds": seconds,
                "amount": 2 * rows**3,
                "about": f"{about}, {rows} x {rows} x {rows}",
            }
        )
    return max(answers, key=lambda answer: answer["amount"] / min(answer["seconds"]))


def _numpy_product(rows: int, dtype: str, threads: int) -> tuple[Callable[[], Any], str]:
    import numpy as np

    del threads  # the environment's variables say it
    left, right = (_matrix(rows, NUMPY[dtype], seed) for seed in (0, 1))
    result = np.empty((rows, rows), NUMPY[dtype])
    return lambda: np.dot(left, right, out=result), f"numpy {np.__version__} ({blas()})"


def _onnxruntime_product(rows: int, dtype: str, threads: int) -> tuple[Callable[[], Any], str]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    if dtype == "int8":  # bytes times signed bytes to int32, as quantised networks do
        operator, kinds = "MatMulInteger", ("uint8", "int8", "int32")
    else:
        operator, kinds = "MatMul", (NUMPY[dtype],) * 3
    codes = {
        "float32": TensorProto.FLOAT,
        "float64": TensorProto.DOUBLE,
        "uint8": TensorProto.UINT8,
        "int8": TensorProto.INT8,
        "int32": TensorProto.INT32,
    }
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", codes[kinds[0]], [rows, rows])],
        [helper.make_tensor_value_info("product", codes[kinds[2]], [rows, rows])],
        [numpy_helper.from_array(_matrix(rows, kinds[1], 1), "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    left = onnxruntime.OrtValue.ortvalue_from_numpy(_matrix(rows, kinds[0], 0))
    product = onnxruntime.OrtValue.ortvalue_from_numpy(_matrix(rows, kinds[2], 2))
    binding.bind_ortvalue_input("left", left)
    binding.bind_ortvalue_output("product", product)
    return lambda: session.run_with_iobinding(binding), (
        f"ONNX Runtime {onnxruntime.__version__} {operator}"
    )


def _matrix(rows: int, dtype: str, seed: int) -> Any:
    import numpy as np

    random = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return random.random((rows, rows), np.dtype(dtype).type)
    return random.integers(0, 100, (rows, rows), dtype)


def blas() -> str:
    """Return which BLAS numpy has loaded, its version, and which kernels it chose for this processor."""
    import numpy as np

    told = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    names = " ".join(filter(None, (told.get("name"), told.get("version"))))
    with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as stream:
        loaded = {line.split(maxsplit=5)[-1].strip() for line in stream if "openblas" in line}
    for path in sorted(loaded):
        library = ctypes.CDLL(path)
        for prefix in ("scipy_", ""):
            for suffix in ("64_", "_64", ""):
                function = getattr(library, f"{prefix}openblas_get_corename{suffix}", None)
                if function is not None:
                    function.restype = ctypes.c_char_p
                    return f"{names}, {function().decode()} kernels"
    return names


def passes(*, threads: int, budget_s: float, memory_bytes: int) -> dict[str, dict[str, Any]]:
    """Return the seconds of passes over memory, by kind: `read`, `copy`, `add`.

    Each thread has its part of three arrays, together `memory_bytes`, made by itself, so that it
    lies in the memory next to it. Bytes are counted as STREAM does (McCalpin 1995): those that the
    program reads and writes.
    """
    import numpy as np

    count = memory_bytes // (3 * 4 * threads)
    pool = ThreadPoolExecutor(threads)

    def make(_index: int) -> tuple[Any, Any, Any]:
        return tuple(np.full(count, value, np.float32) for value in (1, 2, 3))  # type: ignore[return-value]

    parts = list(pool.map(make, range(threads)))
    kinds: dict[str, tuple[int, Callable[[tuple[Any, Any, Any]], Any]]] = {
        "read": (1, lambda part: part[0].max()),
        "copy": (2, lambda part: np.copyto(part[1], part[0])),
        "add": (3, lambda part: np.add(part[0], part[1], out=part[2])),
    }
    results = {}
    for kind, (arrays, work) in kinds.items():

        def run(work: Callable[[tuple[Any, Any, Any]], Any] = work) -> None:
            list(pool.map(work, parts))

        run()
        results[kind] = {
            "seconds": _repeat(run, budget_s),
            "amount": arrays * 4 * count * threads,
            "about": f"numpy {np.__version__}, {kind}, 3 arrays of {4 * count * threads >> 20} MiB",
        }
    pool.shutdown()
    return results


def _timed(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _repeat(run: Callable[[], Any], budget_s: float) -> list[float]:
    """Return the seconds of each of at least `FEWEST` runs, as many as begin within `budget_s`."""
    seconds: list[float] = []
    until = time.perf_counter() + budget_s
    while len(seconds) < FEWEST or (time.perf_counter() < until and len(seconds) < MOST):
        seconds.append(_timed(run))
    return seconds


def main() -> None:
    """Do the measurement that the first argument asks for."""
    request = json.loads(sys.argv[1])
    library = request.pop("library")
    if library == "memory":
        answer: dict[str, Any] = passes(**request)
    else:
        answer = {"product": products(library=library, **request)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
