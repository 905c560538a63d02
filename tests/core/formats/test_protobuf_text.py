"""The text form of protocol buffers, as tools and people write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.formats.protobuf_text import Message, messages, parse, strings
from deploykit.formats.reading import FormatError


def test_what_people_write() -> None:
    found = parse(
        b"""
        name: "net"  # a comment
        layer { name: 'conv1' type: CONVOLUTION bottom: "data" bottom: "more"
                param < lr: 1e-3 > shape { dim: [1, -3, 0x10] } },
        layer: { top: "a" "b"; scale: -inf }
        [package.extension] { x: true }
        """
    )
    assert strings(found, "name") == ["net"]
    first, second = messages(found, "layer")
    assert first["type"] == ["CONVOLUTION"]
    assert strings(first, "bottom") == ["data", "more"]
    assert messages(first, "param")[0] == {"lr": ["1e-3"]}
    assert messages(first, "shape")[0] == {"dim": ["1", "-3", "0x10"]}
    assert second == {"top": [b"ab"], "scale": ["-inf"]}
    assert messages(found, "[package.extension]") == [{"x": ["true"]}]


def test_escapes_stand_for_bytes() -> None:
    assert parse(rb's: "\n\340*\x22\012\\\"\u00e9"')["s"] == [b'\n\xe0*"\n\\"\xc3\xa9']


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"a: 1\n}", "line 2"),
        (b"a {\n b: 1", "line 2"),
        (b"a", "line 1"),
        (b"a: :", "line 1"),
        (b'a: "open\n', "line 1"),
        (b"\x00", "line 1"),
        (b"a {" * 100, "deep"),
    ],
)
def test_what_is_no_text_format_is_named_with_its_line(text: bytes, where: str) -> None:
    with pytest.raises(FormatError, match=where):
        parse(text)


def spelled(message: Message) -> str:
    parts = []
    for name, values in message.items():
        for value in values:
            if isinstance(value, dict):
                parts.append(f"{name} {{ {spelled(value)} }}")
            elif isinstance(value, bytes):
                inner = "".join(f"\\{byte:03o}" for byte in value)
                parts.append(f'{name}: "{inner}"')
            else:
                parts.append(f"{name}: {value}")
    return "\n".join(parts)


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
LEAVES = st.binary(max_size=20) | st.integers().map(str) | NAMES
MESSAGES = st.recursive(
    st.dictionaries(NAMES, st.lists(LEAVES, min_size=1, max_size=3), max_size=4),
    lambda inner: st.dictionaries(NAMES, st.lists(LEAVES | inner, min_size=1, max_size=3)),
    max_leaves=20,
)


@given(MESSAGES)
def test_what_is_spelled_out_is_read_back(message: Message) -> None:
    assert parse(spelled(message).encode()) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    try:
        parse(data)
    except FormatError:
        return
