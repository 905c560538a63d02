"""What is known of this machine's processor."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from deploykit import processor
from deploykit.errors import UnavailableError


@pytest.mark.parametrize(
    ("machine", "text", "found"),
    [
        (
            "x86_64",
            "processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: none\n",
            {"fpu", "avx2", "avx512f"},
        ),
        ("aarch64", "processor\t: 0\nFeatures\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        # an emulated processor, and the file of the machine below
        ("aarch64", "processor\t: 0\nflags\t\t: fpu avx2\n", set()),
        ("riscv64", "processor\t: 0\nisa\t\t: rv64imafdc\n", set()),
        ("x86_64", "nothing of the kind\n", set()),
    ],
)
def test_instruction_sets_are_the_kernels_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, text: str, found: set[str]
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", path)
    monkeypatch.setattr(processor, "architecture", lambda: machine)
    assert processor.instruction_sets() == found


def test_unknown_where_the_kernel_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    assert processor.instruction_sets() == frozenset()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86_64")
def test_this_machine() -> None:
    assert processor.architecture() == "x86_64"
    assert "sse2" in processor.instruction_sets()


def test_what_a_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "architecture", lambda: "aarch64")
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"asimd"}))
    processor.require("the library", "aarch64", ["asimd"])
    with pytest.raises(UnavailableError, match="the library uses sve, sve2, which"):
        processor.require("the library", "aarch64", ["sve2", "asimd", "sve"])
    with pytest.raises(UnavailableError, match="for x86_64, this machine is aarch64"):
        processor.require("the library", "x86_64", [])
    # an emulated processor: what it has is not known
    monkeypatch.setattr(processor, "instruction_sets", frozenset)
    processor.require("the library", "aarch64", ["sve"])
