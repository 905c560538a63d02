"""The source framework by its own compiler, as `profile -t native:compiled` measures it."""

from __future__ import annotations

from pathlib import Path

import pytest

import deploykit as dk

pytestmark = pytest.mark.environment

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "formats"


@pytest.mark.parametrize(
    ("file", "compiler"), [("program.pt2", "torch.compile"), ("saved_model", "XLA")]
)
def test_compiled_and_proven_against_itself(file: str, compiler: str) -> None:
    report = dk.profile(
        FIXTURES / file, ["native", "native:compiled"], load=dk.Load(duration_s=0.3)
    )
    plain, compiled = report.measurements
    assert (plain.outcome, compiled.outcome) == ("ok", "ok"), compiled
    assert plain.parity is None
    assert compiled.parity is not None
    assert compiled.parity.ok
    assert compiled.settings == {"compiler": compiler}
    assert compiled.label == f"native {compiler}"


def test_torchscript_is_compiled_already() -> None:
    load = dk.Load(duration_s=0.3)
    source = dk.SourceOptions.parse(inputs=("x:float32[1,3,4,5]",))
    report = dk.profile(FIXTURES / "scripted.pt", ["native:compiled"], load=load, source=source)
    (found,) = report.measurements
    assert found.outcome == "unsupported"
    assert "TorchScript" in found.detail
