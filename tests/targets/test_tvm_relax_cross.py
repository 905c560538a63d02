"""The target tvm compiles for other machines: what the library is, and what is refused."""

from __future__ import annotations

import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from deploykit import plugins
from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.processor import architecture, instruction_sets
from deploykit.protocol import Hardware

TARGET = "tvm"
FLOAT = TensorProto.FLOAT

PI = Hardware(
    name="raspberry-pi-5", triple="aarch64-linux-gnu", cpu="cortex-a76", features=("+dotprod",)
)
RISCV = Hardware(
    name="riscv-board",
    triple="riscv64-unknown-linux-gnu",
    cpu="generic-rv64",
    features=("+m", "+a", "+f", "+d", "+c"),
)
# numbers of machines in the ELF header, from the ELF specifications of each architecture
MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}


def _part(name: str) -> Any:
    package = plugins.target(TARGET).module.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


@pytest.mark.parametrize(
    ("features", "machine", "lanes", "registers"),
    [
        (["sse2"], "x86_64", 4, 16),
        (["avx", "avx2"], "x86_64", 8, 16),
        (["avx", "avx512f"], "x86_64", 16, 32),
        (["neon"], "aarch64", 4, 32),
        (["v", "zvl128b", "zvl256b"], "riscv64", 8, 32),
        (["i", "m"], "riscv64", 4, 32),
    ],
)
def test_the_width_of_vectors(
    features: list[str], machine: str, lanes: int, registers: int
) -> None:
    """LLVM's own answer is 512 bits for every x86, whatever it has."""
    part = _part("vectors")
    assert part.lanes(features) == lanes
    assert part.registers(features, machine) == registers


def _machine_of(library: Path) -> int:
    """Return the number of the machine in the header of an ELF file (64 bit, little endian)."""
    header = library.read_bytes()[:20]
    assert header[:6] == b"\x7fELF\x02\x01"
    number: int = struct.unpack_from("<H", header, 18)[0]
    return number


def _small(build: Any, rows: int | str = 3) -> Any:
    weight = np.random.default_rng(1).normal(size=(40, 24)).astype(np.float32)
    return build(
        [("MatMul", ["x", "w"], ["z"], {}), ("Softmax", ["z"], ["y"], {})],
        [("x", FLOAT, [rows, 40])],
        [("y", FLOAT, [rows, 24])],
        {"w": weight},
    )


@pytest.mark.environment
@pytest.mark.parametrize(
    ("hardware", "flags"),
    [
        (PI, {"asimd", "asimddp", "atomics"}),
        (RISCV, set()),
        (Hardware(name="v2", triple="x86_64-linux-gnu", cpu="x86-64-v2"), {"sse4_2", "popcnt"}),
        (Hardware(name="v3", triple="x86_64-pc-linux-gnu", cpu="x86-64-v3"), {"avx2", "fma"}),
        (Hardware(name="v4", triple="x86_64-linux-gnu", cpu="x86-64-v4"), {"avx512f"}),
    ],
    ids=["aarch64", "riscv64", "v2", "v3", "v4"],
)
def test_a_library_of_the_other_machine(
    bench: Any, build: Any, hardware: Hardware, flags: set[str]
) -> None:
    result = bench.compile(_small(build), hardware=hardware)
    assert flags <= set(result.cpu_flags)
    assert "avx2" not in result.cpu_flags or hardware.cpu in ("x86-64-v3", "x86-64-v4")
    assert _machine_of(bench.payload / "model.so") == MACHINES[hardware.architecture]
    if hardware.architecture == architecture() and set(result.cpu_flags) <= instruction_sets():
        x = np.random.default_rng(2).normal(size=(3, 40)).astype(np.float32)
        y = bench.load().run({"x": x})["y"]
        assert y.shape == (3, 24)
        np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)
    else:
        with pytest.raises(UnavailableError, match=r"this (machine|processor)"):
            bench.load()


@pytest.mark.environment
def test_dynamic_sizes_stay_so_where_the_graph_runs_here(bench: Any, build: Any) -> None:
    result = bench.compile(_small(build, "n"), hardware=PI)
    assert result.signature.inputs[0].shape == ("n", 40)
    assert any("x:0 may have any size" in note for note in result.notes)
    assert _machine_of(bench.payload / "model.so") == MACHINES["aarch64"]


@pytest.mark.environment
@pytest.mark.parametrize(
    ("hardware", "says"),
    [
        (Hardware(name="h", triple="aarch64-linux-gnu", cpu="cortex-a67"), "cortex-a67"),
        (Hardware(name="h", triple="aarch64-linux-gnu", features=("+dotpord",)), "dotpord"),
        (Hardware(name="h", triple="aarch64-linux-gnu", features=("+neon,+sve",)), "neon"),
        (Hardware(name="h", triple="arm64-apple-darwin", cpu="apple-m4"), "Linux"),
        (Hardware(name="h", triple="mips64-linux-gnu"), "mips64"),
        (Hardware(name="h", triple="riscv64-linux-gnu", cpu="generic-rv64"), "\\+d"),
    ],
    ids=["processor", "feature", "two features in one", "system", "architecture", "no floats"],
)
def test_hardware_that_llvm_would_misread_is_refused(
    bench: Any, build: Any, hardware: Hardware, says: str
) -> None:
    """LLVM prints a warning and compiles for something else."""
    with pytest.raises(UnsupportedError, match=says):
        bench.compile(_small(build), hardware=hardware)
    assert list(bench.payload.iterdir()) == []


@pytest.mark.environment
def test_without_a_linker_for_the_machine_it_says_so(
    bench: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="aarch64-linux-gnu") as raised:
        bench.compile(_small(build), hardware=PI)
    assert "ziglang" in raised.value.hint
