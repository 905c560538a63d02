"""Reading what `nvidia-smi` says; here a program that says what real ones are documented to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit import nvidia_driver
from deploykit.nvidia_driver import NvidiaGpu, nvidia_gpu


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes an `nvidia-smi` that prints `text` and ends with `code`."""

    def make(text: str, code: int = 0) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return make


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpu() is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9),
        ("No devices were found", 0),
        ("", 0),
        ("NVIDIA Graphics, [N/A], 24564, 550.1", 0),
        ("Field compute_cap is not a valid field to query.", 2),
    ],
)
def test_a_driver_that_knows_nothing(smi: Callable[..., None], text: str, code: int) -> None:
    smi(text, code)
    assert nvidia_gpu() is None


def test_a_driver_that_hangs(
    smi: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi("")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(nvidia_driver, "LIMIT_S", 0.3)
    assert nvidia_gpu() is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "NVIDIA H100 80GB HBM3, 9.0, 81559, 570.124.06\n" * 8,
            NvidiaGpu(
                name="NVIDIA H100 80GB HBM3",
                count=8,
                architecture="sm_90",
                memory_bytes=81559 << 20,
                driver="570.124.06",
            ),
        ),
        (
            "NVIDIA L4, 8.9, 23034, 550.54.15\nNVIDIA T4, 7.5, 15360, 550.54.15",
            NvidiaGpu(
                name="NVIDIA L4",
                count=1,
                architecture="sm_89",
                memory_bytes=23034 << 20,
                driver="550.54.15",
            ),
        ),
        (
            "Orin (nvgpu), 8.7, [N/A], 540.3.0",
            NvidiaGpu(
                name="Orin (nvgpu)",
                count=1,
                architecture="sm_87",
                memory_bytes=None,
                driver="540.3.0",
            ),
        ),
    ],
)
def test_what_it_tells(smi: Callable[..., None], text: str, found: NvidiaGpu) -> None:
    smi(text.strip())
    assert nvidia_gpu() == found
