from __future__ import annotations

import pytest

from deploykit.formats.protobuf_wire import beginning, fields, number, numbers, text
from deploykit.formats.reading import FormatError
from tests.core.formats.protobuf_writer import field, varint


def test_fields_come_in_order_with_their_values() -> None:
    data = field(1, "name") + field(3, -1) + field(2, b"\x01\x02") + field(99, 300)
    found = list(fields(memoryview(data)))
    assert [key for key, _ in found] == [1, 3, 2, 99]
    assert text(found[0][1]) == "name"
    assert number(found[1][1]) == -1
    assert numbers(found[2][1]) == [1, 2]
    assert found[3][1] == 300


def test_fixed_numbers() -> None:
    data = varint(1 << 3 | 1) + (7).to_bytes(8, "little") + varint(2 << 3 | 5) + b"\x09\0\0\0"
    assert list(fields(memoryview(data))) == [(1, 7), (2, 9)]


@pytest.mark.parametrize(
    "data",
    [
        varint(1 << 3 | 2) + varint(5) + b"abc",
        varint(1 << 3 | 2) + varint(1 << 63),
        varint(1 << 3 | 2),
        varint(1 << 3 | 1) + b"\0\0",
        b"\x08" + b"\xff" * 11,
        b"\x08\xff",
        varint(1 << 3 | 3),
        varint(0 << 3 | 0) + b"\0",
    ],
    ids=["short", "huge", "no length", "cut number", "long", "cut", "group", "field 0"],
)
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        list(fields(memoryview(data)))


def test_the_beginning_of_a_cut_message_is_still_recognised() -> None:
    whole = field(1, "name") + field(2, b"x" * 1000)
    found = beginning(memoryview(whole[:50]))
    assert found is not None
    assert [(key, text(value)) for key, value in found] == [(1, "name"), (2, "x" * (50 - 9))]


def test_a_shape_of_megabytes_is_refused() -> None:
    with pytest.raises(FormatError, match="shape"):
        numbers(memoryview(b"\x01" * 1_000_000))
