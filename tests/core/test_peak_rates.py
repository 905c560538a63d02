"""The measurements themselves: what is counted, and that the products are what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from deploykit import peak_rates

MEMORY = 64 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_rates, "AIM_S", 1e-9)  # the smallest size will do
    monkeypatch.setattr(peak_rates, "SMALLEST", 128)


@pytest.mark.parametrize(
    ("library", "dtype", "said"),
    [
        ("numpy", "fp32", f"numpy {np.__version__} ("),
        ("numpy", "fp64", f"numpy {np.__version__} ("),
        ("onnxruntime", "fp32", "MatMul, 128 x 128 x 128"),
        ("onnxruntime", "fp64", "MatMul, 128 x 128 x 128"),
        ("onnxruntime", "int8", "MatMulInteger, 128 x 128 x 128"),
    ],
)
def test_products(library: str, dtype: str, said: str) -> None:
    found = peak_rates.products(
        library=library, dtype=dtype, threads=1, budget_s=0.0, memory_bytes=MEMORY
    )
    assert found["amount"] == 2 * 128**3
    assert said in found["about"]
    assert len(found["seconds"]) >= peak_rates.FEWEST
    assert min(found["seconds"]) > 0


def test_the_size_grows_to_the_aim_and_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_rates, "AIM_S", 1e9)
    made: list[int] = []

    def make(rows: int, *_: Any) -> Any:
        made.append(rows)
        return (lambda: None), "nothing"

    monkeypatch.setattr(peak_rates, "_numpy_product", make)
    peak_rates.products(
        library="numpy", dtype="fp32", threads=1, budget_s=0.0, memory_bytes=1 << 25
    )
    assert made == [128, 256, 512, 1024]
    assert 4 * 8 * made[-1] ** 2 <= 1 << 25


@pytest.mark.parametrize(("dtype", "exact"), [("fp32", False), ("fp64", False), ("int8", True)])
def test_onnxruntime_computes_the_product(dtype: str, exact: bool) -> None:
    run, _ = peak_rates._onnxruntime_product(128, dtype, 1)
    run()
    names = {"fp32": ("float32", "float32"), "fp64": ("float64",) * 2, "int8": ("uint8", "int8")}
    left, right = (peak_rates._matrix(128, name, seed) for seed, name in enumerate(names[dtype]))
    expected = left.astype(np.int32 if exact else np.float64) @ right.astype(
        np.int32 if exact else np.float64
    )
    binding = run.__closure__  # what it wrote is held by the binding alone
    assert binding is not None
    (held,) = [
        cell.cell_contents for cell in binding if type(cell.cell_contents).__name__ == "IOBinding"
    ]
    (product,) = held.copy_outputs_to_cpu()
    np.testing.assert_allclose(product, expected, rtol=1e-5)


def test_passes_count_what_is_read_and_written() -> None:
    found = peak_rates.passes(threads=2, budget_s=0.0, memory_bytes=12 << 20)
    amount = {kind: answer["amount"] for kind, answer in found.items()}
    assert amount == {"read": 4 << 20, "copy": 8 << 20, "add": 12 << 20}
    assert all(len(answer["seconds"]) >= peak_rates.FEWEST for answer in found.values())
    assert "3 arrays of 4 MiB" in found["copy"]["about"]


def test_as_a_process() -> None:
    request = {"library": "memory", "threads": 1, "budget_s": 0.0, "memory_bytes": 3 << 20}
    done = subprocess.run(
        [sys.executable, peak_rates.__file__, json.dumps(request)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert set(json.loads(done.stdout)) == {"read", "copy", "add"}


def test_the_kernels_are_named() -> None:
    told = peak_rates.blas()
    assert told
    if "openblas" in told:
        assert told.endswith(" kernels")
