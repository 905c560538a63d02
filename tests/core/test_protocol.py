"""Requests and results as JSON: there and back, and a clear error for what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit import protocol
from deploykit.bundle import Manifest
from deploykit.parity import OutputParity, Tolerance
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    ConvertRequest,
    ConvertResult,
    LoadRequest,
    ReferenceRequest,
    Signature,
    Source,
    TensorSpec,
    from_json,
    to_json,
)

TEXT = st.text(max_size=12)
SPECS = st.builds(
    TensorSpec,
    name=TEXT,
    dtype=TEXT,
    shape=st.none() | st.lists(st.none() | st.integers() | TEXT, max_size=4).map(tuple),
)
SIGNATURES = st.builds(
    Signature,
    inputs=st.lists(SPECS, max_size=3).map(tuple),
    outputs=st.lists(SPECS, max_size=3).map(tuple),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
RESULTS = st.builds(
    ConvertResult,
    signature=SIGNATURES,
    repairs=st.lists(st.text(), max_size=2).map(tuple),
    versions=st.dictionaries(st.text(), st.text(), max_size=2),
    steps=st.integers(),
    atol=FINITE,
)
for _kind, _strategy in (
    (TensorSpec, SPECS),
    (Signature, SIGNATURES),
    (ConvertResult, RESULTS),
):
    st.register_type_strategy(_kind, _strategy)

KINDS = (
    *(Source, ConvertRequest, ConvertResult, ReferenceRequest, Availability),
    *(CompileRequest, CompileResult, LoadRequest, Signature),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_round_trip(kind: type) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.from_type(kind))
    def there_and_back(value: Any) -> None:
        text = json.dumps(to_json(value), allow_nan=False)
        assert from_json(kind, json.loads(text)) == value

    there_and_back()


PARITIES = st.builds(
    OutputParity, max_abs_error=FINITE, max_rel_error=FINITE, cosine=FINITE, sqnr_db=FINITE
)
MANIFESTS = st.builds(Manifest, tolerance=st.builds(Tolerance, atol=FINITE, rtol=FINITE))


@settings(max_examples=30, deadline=None)
@given(MANIFESTS, PARITIES)
def test_round_trip_of_what_bundles_keep(manifest: Manifest, parity: OutputParity) -> None:
    for value in (manifest, parity):
        assert from_json(type(value), json.loads(json.dumps(value.to_json()))) == value


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (TensorSpec, [], "TensorSpec: expected an object, found list"),
        (TensorSpec, {"name": 1, "dtype": "a", "shape": []}, r"TensorSpec\.name"),
        (TensorSpec, {"name": "x", "dtype": "a", "shape": [1.5]}, r"TensorSpec\.shape"),
        (TensorSpec, {"name": "x", "dtype": "a", "shape": [True]}, r"TensorSpec\.shape"),
        (TensorSpec, {"name": "x"}, "dtype"),
        (Signature, {"inputs": {}, "outputs": []}, r"Signature\.inputs: expected a list"),
        (Signature, {"inputs": [{"name": 1}], "outputs": []}, r"Signature\.inputs\[0\]\.name"),
        (Source, {"location": "a", "format": "b", "trust": 1}, r"Source\.trust"),
        (Source, {"location": "a", "format": "b", "options": []}, r"Source\.options"),
    ],
)
def test_what_does_not_fit_is_named(kind: type, value: object, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        from_json(kind, value)


def test_unknown_fields_are_ignored() -> None:
    value = {"name": "x", "dtype": "int8", "shape": None, "of_a_later_version": 3}
    assert from_json(TensorSpec, value) == TensorSpec(name="x", dtype="int8", shape=None)


def test_it_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; sys.modules.update(numpy=None, onnx=None); "
        "import deploykit.protocol as p; print(p.VERSION)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(protocol.__file__).parent.parent,
    )
    assert done.stdout.strip() == str(protocol.VERSION)
