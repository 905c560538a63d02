from __future__ import annotations

import collections
import os
import pickle
import struct
from typing import Any

import pytest

from deploykit.formats.pickle_scan import Call, Global, Mapping, scan, walk
from deploykit.formats.reading import FormatError


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol: int) -> None:
    value = [1, -2, 1 << 70, 2.5, "text", b"bytes", None, True, (1, 2, 3, 4), ()]
    found = scan(pickle.dumps(value, protocol=protocol))
    if protocol >= 3:
        assert found.value == value
    else:
        # bytes are made by a call there
        assert found.value[:5] == value[:5]
        assert found.globals == ["_codecs.encode"]


def test_dicts_and_sets_and_shared_objects() -> None:
    shared = [1]
    found = scan(pickle.dumps({"a": shared, "b": shared, "c": {1}}, protocol=4)).value
    assert isinstance(found, Mapping)
    pairs = dict(found.pairs)
    assert pairs["a"] is pairs["b"]
    assert pairs["c"] == [1]


def test_calls_are_noted_and_not_made() -> None:
    found = scan(pickle.dumps(collections.OrderedDict(a=1), protocol=2))
    assert found.globals == ["collections.OrderedDict"]
    assert isinstance(found.value, Call)
    assert found.value.function == Global("collections.OrderedDict")
    assert found.value.state.pairs == [("a", 1)]


class _Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_not_run(protocol: int, tmp_path: Any) -> None:
    mark = tmp_path / "ran"
    found = scan(pickle.dumps(_Runs(os.mkdir, str(mark)), protocol=protocol))
    assert found.globals == [f"{os.mkdir.__module__}.mkdir"]
    assert not mark.exists()


def test_several_pickles_in_one_file() -> None:
    first = pickle.dumps("one")
    data = first + pickle.dumps("two") + b"rest"
    assert scan(data).size == len(first)
    assert scan(data, len(first)).value == "two"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x04",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
        b"\x80\x04\x8b" + struct.pack("<i", 1 << 30) + b".",
        b"\x80\x02h\x07.",
        b"\x80\x02K\x01\x93.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"K\x01K\x02s.",
        b"t.",
        pickle.dumps(list(range(100)))[:-1],
    ],
)
def test_damaged_pickles_are_errors(data: bytes) -> None:
    with pytest.raises(FormatError):
        scan(data)


def test_a_value_that_grows_without_end_is_walked_once() -> None:
    # each tuple holds the one before twice: 2^200 leaves for whoever does not look at identity
    data = b"\x80\x02)" + b"2\x86" * 200 + b"."
    assert sum(1 for _ in walk(scan(data).value)) < 1000


def test_deep_nesting_is_no_recursion() -> None:
    data = b"\x80\x02)" + b"\x85" * 200_000 + b"."
    assert sum(1 for _ in walk(scan(data).value)) == 200_001
