"""The inputs of a profile: the batch and sizes asked for, the same for every contender."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deploykit as dk
from deploykit.bundle import golden, read_manifest
from deploykit.compilation import Build
from deploykit.errors import UsageError
from deploykit.prepared import Prepared
from deploykit.profile_feed import feed_of_bundle, feed_of_model
from deploykit.runs import resumable
from deploykit.source_model import SourceModel


@pytest.fixture
def build() -> Build:
    return Build(settings={})


def test_of_a_model(odd_model: Path, build: Build) -> None:
    source = dk.SourceOptions(settings={"do": "stride32"})
    with (
        SourceModel(odd_model, options=source, conditions=dk.Conditions()) as model,
        resumable(["x"], resume=False) as run,
    ):
        prepared = Prepared.make(run, model, checks=dk.Checks(seeds=1))
        same, feed = feed_of_model(prepared, build, batch=None, seed=0)
        assert same == build, "the bundles stay dynamic"
        assert feed["x"].shape == (1, 32)
        fixed, feed = feed_of_model(prepared, build, batch=6, seed=0)
        assert fixed.shapes == ({"x": (6, 32)},)
        assert feed["x"].shape == (6, 32)
        wide = Build(settings={}, shapes=({"x": (6, 96)},))
        assert feed_of_model(prepared, wide, batch=6, seed=0)[1]["x"].shape == (6, 96)
        assert feed_of_model(prepared, wide, batch=None, seed=0)[1]["x"].shape == (6, 96)
        with pytest.raises(UsageError, match="first axis that can be 4"):
            feed_of_model(prepared, wide, batch=4, seed=0)
        with pytest.raises(UsageError, match="`z`"):
            feed_of_model(prepared, Build(settings={}, shapes=({"z": (1,)},)), batch=None, seed=0)


def test_of_a_bundle_its_golden_rows_are_repeated(odd_model: Path, tmp_path: Path) -> None:
    dk.compile(odd_model, ["odd"], tmp_path, checks=dk.Checks(seeds=1))
    folder = tmp_path / "odd-cpu-fp32"
    manifest = read_manifest(folder)
    first = golden(folder, manifest)[0][0]["x"]
    assert first.shape == (1, 4)
    np.testing.assert_array_equal(feed_of_bundle(folder, manifest, batch=None, seed=0)["x"], first)
    np.testing.assert_array_equal(
        feed_of_bundle(folder, manifest, batch=3, seed=0)["x"], np.repeat(first, 3, axis=0)
    )
