"""Protocol buffers in text form (`.prototxt`, `.pbtxt`), without a schema.

https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from deploykit.formats.protobuf_wire import DEEPEST
from deploykit.formats.reading import FormatError

Text = bytes | str
"""A quoted text as the bytes it stands for; a number or a name as it is written."""

Message = dict[str, list["Text | Message"]]
"""The values of each field by its name, in the order of the file."""

MOST_TOKENS = 20_000_000

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* |
    (?P<name>[A-Za-z_][\w./-]*) |
    (?P<number>[-+]?(?:\d|\.\d)[\w.+-]*) |
    (?P<text>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*') |
    (?P<extension>\[[\w./-]+\]) |
    (?P<sign>[{}<>:;,\[\]-])""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|(.))")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

Token = tuple[str, str, int]


def parse(document: bytes) -> Message:
    """Return the message that `document` spells out.

    Raises FormatError, naming the line, where it is no text format.
    """
    text = document.decode("utf-8", "surrogateescape")
    return _Reader(text).message("", 0)


def strings(message: Message, name: str) -> list[str]:
    """Return the texts of field `name`; names and numbers count as they are written."""
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for value in message.get(name, [])
        if not isinstance(value, dict)
    ]


def messages(message: Message, name: str) -> list[Message]:
    """Return the messages of field `name`."""
    return [value for value in message.get(name, []) if isinstance(value, dict)]


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._next: Token | None = next(self._tokens, None)

    def _split(self) -> Iterator[Token]:
        at, count = 0, 0
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise self._wrong(at, f"{self._text[at : at + 20]!r}")
            count += 1
            if count > MOST_TOKENS:
                raise FormatError(f"more than {MOST_TOKENS} words")
            if match.lastgroup is not None:
                yield match.lastgroup, match[0], at
            at = match.end()

    def _wrong(self, at: int, what: str) -> FormatError:
        return FormatError(f"line {self._text.count(chr(10), 0, at) + 1} has {what}")

    def _take(self) -> Token:
        token = self._next
        if token is None:
            raise self._wrong(len(self._text), "an end where more is due")
        self._next = next(self._tokens, None)
        return token

    def _is(self, *signs: str) -> bool:
        return self._next is not None and self._next[0] == "sign" and self._next[1] in signs

    def message(self, end: str, depth: int) -> Message:
        if depth > DEEPEST:
            raise FormatError(f"messages within messages, {DEEPEST} deep")
        found: Message = {}
        while self._next is not None and not (end and self._is(end)):
            kind, name, at = self._take()
            if kind not in ("name", "extension"):
                raise self._wrong(at, f"{name!r} where the name of a field is due")
            values = found.setdefault(name, [])
            colon = self._is(":")
            if colon:
                self._take()
            if colon and self._is("["):
                self._take()
                while not self._is("]"):
                    values.append(self._value(depth))
                    if self._is(","):
                        self._take()
                self._take()
            elif colon or self._is("{", "<"):
                values.append(self._value(depth))
            else:
                raise self._wrong(at, f"a field {name!r} without a value")
            while self._is(",", ";"):
                self._take()
        if end:
            self._take()
        return found

    def _value(self, depth: int) -> Text | Message:
        kind, word, at = self._take()
        if kind == "sign" and word in "{<":
            return self.message("}" if word == "{" else ">", depth + 1)
        if kind == "sign" and word == "-":
            return "-" + self._take()[1]
        if kind == "text":
            parts = [word]
            while self._next is not None and self._next[0] == "text":
                parts.append(self._take()[1])
            return b"".join(_unquoted(part) for part in parts)
        if kind in ("name", "number"):
            return word
        raise self._wrong(at, f"{word!r} where a value is due")


def _unquoted(quoted: str) -> bytes:
    inner = quoted[1:-1]
    if "\\" not in inner:
        return inner.encode("utf-8", "surrogateescape")
    out = bytearray()
    at = 0
    for match in _ESCAPE.finditer(inner):
        out += inner[at : match.start()].encode("utf-8", "surrogateescape")
        octal, hexadecimal, point, letter = match.groups()
        if octal or hexadecimal:
            out.append(int(octal, 8) & 255 if octal else int(hexadecimal, 16))
        elif point:
            out += chr(int(point, 16)).encode("utf-8", "replace")
        else:
            out += _LETTERS.get(letter, letter).encode("utf-8", "surrogateescape")
        at = match.end()
    return bytes(out + inner[at:].encode("utf-8", "surrogateescape"))
