"""This machine as a profile. What is measured is checked against itself, never against a clock."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploykit import this_hardware
from deploykit.errors import PluginError, StepTimeout
from deploykit.events import Event
from deploykit.hardware_reading import parse_profile
from deploykit.hardware_writing import format_profile
from deploykit.machine import Machine, fingerprint
from deploykit.nvidia_driver import NvidiaGpu
from deploykit.this_hardware import Rate, last_level_cache_bytes, measure, profile_of

CPUINFO = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
    "flags\t\t: fpu avx2 fma avx512f\n"
)


def machine(**changes: Any) -> Machine:
    known = {
        "architecture": "x86_64",
        "cpu_model": "Intel(R) Xeon(R) Platinum 8481C",
        "cores_usable": 2,
        "cores_logical": 8,
        "memory_bytes": 16 << 30,
        "memory_limit_bytes": 4 << 30,
        "load_average": (0.0, 0.0, 0.0),
    }
    return dataclasses.replace(fingerprint(), **{**known, **changes})


def rate(what: str, best: float, *, median: float = 0, about: str = "numpy 2") -> Rate:
    return Rate(
        what=what,
        about=about,
        threads=2,
        repetitions=9,
        best=best,
        median=median or best,
        worst=best / 2,
    )


def test_the_best_of_each_kind_is_the_peak() -> None:
    rates = (
        rate("fp32", 100.123456e9),
        rate("fp32", 120e9, about="ONNX Runtime 1 MatMul"),
        rate("fp64", 60e9),
        rate("memory", 20e9, about="numpy 2, copy"),
        rate("memory", 25e9, about="numpy 2, read"),
    )
    profile = profile_of(machine(), CPUINFO, rates, name="mine", today="2026-01-02")
    cpu = profile.devices["cpu"]
    assert {name: figure.value for name, figure in cpu.peak_ops_per_s.items()} == {
        "fp32": 120e9,
        "fp64": 60e9,
    }
    assert cpu.peak_ops_per_s["fp32"].note == (
        "ONNX Runtime 1 MatMul, 2 threads, best of 9 repetitions; median 120, slowest 60 GFLOP/s"
    )
    assert cpu.bandwidth_bytes_per_s is not None
    assert cpu.bandwidth_bytes_per_s.value == 25e9
    assert cpu.bandwidth_bytes_per_s.sources == ("measured",)
    assert profile.sources["measured"].date == "2026-01-02"
    assert profile.sources["measured"].publisher.startswith("measured by deploykit ")


def test_what_the_machine_is() -> None:
    profile = profile_of(machine(), CPUINFO, (rate("fp32", 1e9),), name="mine")
    assert profile.triple.startswith("x86_64-linux-")
    assert profile.cpu == "sapphirerapids"
    assert {"+avx512f", "-amx-tile"} <= set(profile.features)
    assert profile.flags == ("avx2", "avx512f", "fma")
    assert profile.cores is not None
    assert profile.cores.value == 2
    assert profile.memory_bytes is not None
    assert profile.memory_bytes.value == 4 << 30  # what the control group leaves of it
    assert parse_profile(format_profile(profile), name="mine", where="it") == profile


@pytest.mark.parametrize(
    ("told", "title"),
    [
        ("Intel(R) Core(TM) i7-4770  CPU @ 3.40GHz   ", "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz"),
        ("Board\x00\tRev\x7f \u202e1", "Board Rev 1"),
        (" ", "processor of kind x86_64"),
    ],
)
def test_a_name_from_firmware_becomes_a_line(told: str, title: str) -> None:
    profile = profile_of(machine(cpu_model=told), CPUINFO, (rate("fp32", 1e9),), name="mine")
    assert profile.devices["cpu"].title == title
    assert parse_profile(format_profile(profile), name="mine", where="it") == profile


def test_a_gpu_is_described_by_its_driver() -> None:
    gpu = NvidiaGpu(
        name="NVIDIA L4", count=2, architecture="sm_89", memory_bytes=24 << 30, driver="570.1"
    )
    profile = profile_of(machine(), CPUINFO, (rate("fp32", 1e9),), name="mine", gpu=gpu)
    assert profile.gpu == "sm_89"
    assert profile.devices["gpu"].title == "2 x NVIDIA L4"
    assert profile.devices["gpu"].peak_ops_per_s == {}
    assert profile.sources["driver"].document == "driver 570.1"
    assert parse_profile(format_profile(profile), name="mine", where="it") == profile


def test_a_machine_that_tells_nothing_is_a_profile_too() -> None:
    bare = machine(
        cpu_model="", memory_bytes=None, memory_limit_bytes=None, architecture="loongarch64"
    )
    profile = profile_of(bare, "", (rate("fp32", 1e9),), name="mine")
    assert profile.memory_bytes is None
    assert profile.cpu == ""
    assert profile.features == ()
    assert parse_profile(format_profile(profile), name="mine", where="it") == profile


def test_a_library_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(request: Mapping[str, Any], _variables: object, _budget: float) -> list[Rate]:
        if request["library"] == "numpy":
            raise PluginError("numpy fp32: ImportError: no numpy")
        if request.get("dtype") == "int8":
            raise StepTimeout("too slow")
        return [rate(request.get("dtype", "memory"), 1e9)]

    monkeypatch.setattr(this_hardware, "_measured", measured)
    events: list[Event] = []
    rates, notes = measure(machine(), listen=events.append)
    assert [item.what for item in rates] == ["fp32", "fp64", "memory"]
    assert "not measured: numpy fp32: ImportError: no numpy" in notes
    assert "not measured: too slow" in notes
    assert [event.kind for event in events if event.kind != "progress"] == ["start", "end"]
    assert all(event.total for event in events if event.kind == "progress")


def test_nothing_measured_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_arguments: object) -> list[Rate]:
        raise PluginError("no library")

    monkeypatch.setattr(this_hardware, "_measured", measured)
    with pytest.raises(PluginError, match="nothing could be measured") as told:
        measure(machine())
    assert "no library" in told.value.hint


def test_a_busy_machine_and_bent_kernels_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def measured(
        request: Mapping[str, Any], variables: Mapping[str, str], _budget: float
    ) -> list[Rate]:
        asked.append((request["library"], "OPENBLAS_CORETYPE" in variables))
        return [rate(request.get("dtype", "memory"), 2e9, median=1e9)]

    monkeypatch.setattr(this_hardware, "_measured", measured)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    _, notes = measure(machine(load_average=(7.0, 0.0, 0.0)))
    assert ("numpy", True) in asked
    assert ("numpy", False) in asked
    assert ("onnxruntime", True) not in asked
    assert any(note.startswith("OPENBLAS_CORETYPE=Prescott is set") for note in notes)
    assert any("the machine was busy (load 7.0 on 2 cores)" in note for note in notes)
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    asked.clear()
    monkeypatch.setattr(
        this_hardware, "_measured", lambda *_: [rate("fp32", 1e9), rate("memory", 1e9)]
    )
    _, notes = measure(machine())
    assert not [note for note in notes if "busy" in note or "is set" in note]


def test_last_level_caches_are_added_up(tmp_path: Path) -> None:
    for cpu, shared in enumerate(("0-1", "0-1", "2-3", "2-3")):
        for index, (level, size) in enumerate((("1", "32K"), ("3", "16M"))):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(level)
            (folder / "size").write_text(size)
            (folder / "shared_cpu_list").write_text(str(cpu) if level == "1" else shared)
    assert last_level_cache_bytes(root=tmp_path) == 32 << 20
    assert last_level_cache_bytes(root=tmp_path / "absent") == 0


def test_a_process_that_fails_is_told_with_its_last_line() -> None:
    request = {"library": "numpy", "dtype": "fp33", "threads": 1, "memory_bytes": 1 << 28}
    with pytest.raises(PluginError, match=r"numpy fp33: KeyError: 'fp33'"):
        this_hardware._measured(request, dict(os.environ), 0.0)
