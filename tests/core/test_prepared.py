"""A converted model that waits for targets: kept over an interruption, asked again for other sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import MismatchError, UsageError
from deploykit.options import Checks, Conditions, SourceOptions
from deploykit.prepared import Prepared
from deploykit.protocol import Signature
from deploykit.runs import Run, resumable
from deploykit.source_model import SourceModel

pytestmark = pytest.mark.usefixtures("odd_plugins")


def source(model: Path, do: str = "honest") -> SourceModel:
    return SourceModel(
        model, options=SourceOptions(settings={"do": do}), conditions=Conditions(install=False)
    )


def fixed(prepared: Prepared, batch: int) -> Signature:
    signature = prepared.conversion.signature
    return replace(
        signature, inputs=tuple(replace(spec, shape=(batch, 4)) for spec in signature.inputs)
    )


def test_what_was_converted_is_not_converted_again(
    odd_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("ODD_LOG", str(log))
    with source(odd_model) as model:
        folder = tmp_path / "run"
        folder.mkdir()
        run = Run(folder)
        first = Prepared.make(run, model, checks=Checks())
        run.journal.close()
    with source(odd_model) as model:
        run = Run(folder)
        second = Prepared.make(run, model, checks=Checks())
        # everything is there without the framework: its worker was not even started
        assert model._worker is None
        run.journal.close()
    assert log.read_text() == "convert\n"
    assert second.conversion == first.conversion
    assert second.onnx == first.onnx
    assert second.onnx.is_file()
    assert [case for case, _ in second.pairs] == [case for case, _ in first.pairs]
    for (_, one), (_, other) in zip(first.pairs, second.pairs, strict=True):
        np.testing.assert_array_equal(one[0]["x"], other[0]["x"])
        np.testing.assert_array_equal(one[1]["y"], other[1]["y"])
    assert second.provenance() == first.provenance()
    assert second.provenance().source == "odd.mlmodel"
    assert second.provenance().options == {"do": "honest"}


def test_the_source_is_asked_again_for_sizes_that_no_pair_has(
    odd_model: Path, own_home: Path
) -> None:
    with source(odd_model) as model, resumable(["x"], resume=False) as run:
        prepared = Prepared.make(run, model, checks=Checks(seeds=2))
        as_converted = prepared.pairs_for(prepared.conversion.signature)
        assert [pair[0]["x"].shape[0] for _, pair in as_converted] == [1, 1, 2, 5, 3]
        five = prepared.pairs_for(fixed(prepared, 5))
        assert [str(case) for case, _ in five] == ["seed 3 (batch=5)"]
        seven = prepared.pairs_for(fixed(prepared, 7))
        assert [pair[0]["x"].shape for _, pair in seven] == [(7, 4), (7, 4)]
        for _, (feed, outputs) in seven:
            np.testing.assert_array_equal(outputs["y"], 2 * feed["x"] + 1)


def test_without_checks_nothing_is_asked(odd_model: Path, own_home: Path) -> None:
    with source(odd_model) as model, resumable(["x"], resume=False) as run:
        prepared = Prepared.make(run, model, checks=Checks(enabled=False))
        assert prepared.pairs == []
        assert prepared.pairs_for(fixed(prepared, 7)) == []
        assert model._reference is None


def test_a_wrong_conversion_is_not_recorded(odd_model: Path, own_home: Path) -> None:
    with (
        source(odd_model, "wrong") as model,
        pytest.raises(MismatchError),
        resumable(["x"], resume=False) as run,
    ):
        Prepared.make(run, model, checks=Checks(seeds=1))
    assert [path for path in (own_home / "runs").iterdir() if path.is_dir()] == []


def test_a_source_that_cannot_take_the_compiled_sizes(odd_model: Path, own_home: Path) -> None:
    with source(odd_model, "rejects2") as model, resumable(["x"], resume=False) as run:
        prepared = Prepared.make(run, model, checks=Checks(seeds=1))
        with pytest.raises(UsageError, match=r"cannot take \(2, 4\)") as caught:
            prepared.pairs_for(fixed(prepared, 2))
        assert "--sample" in caught.value.hint
