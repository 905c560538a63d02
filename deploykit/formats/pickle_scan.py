"""Pickles read without running them: the opcodes build a description, and no object is made.

A pickle is a program. Here each name that it would import stays a name (`Global`), and each call
that it would make stays a note of the call (`Call`).
"""

from __future__ import annotations

import _codecs
import _compat_pickle
import io
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from deploykit.formats.reading import FormatError

MOST_OPCODES = 5_000_000


@dataclass(frozen=True)
class Global:
    """A name that unpickling would import."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class Call:
    """A call that unpickling would make; `state` is what would be set on its result."""

    function: Any
    arguments: Any
    state: Any = None


@dataclass(eq=False)
class Persistent:
    """An object kept outside the pickle, such as a tensor's storage."""

    key: Any


@dataclass(eq=False)
class Mapping:
    """A dict, as pairs, for its keys need not be hashable here."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass
class Pickle:
    """What one pickle describes; `size` is its length in bytes."""

    value: Any
    size: int
    globals: list[str]
    calls: list[Call]


_MARK = object()
_OPCODES = {one.code: one for one in pickletools.opcodes}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SEQUENCES = {"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": Mapping}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"STOP", "FRAME", "READONLY_BUFFER"})


def scan(data: bytes, start: int = 0) -> Pickle:
    """Return what the pickle at byte `start` of `data` describes. Raises FormatError."""
    stream = io.BytesIO(data)
    stream.seek(start)
    machine = _Machine()
    try:
        for count, (name, argument) in enumerate(_instructions(stream)):
            if count > MOST_OPCODES:
                raise FormatError(f"the pickle has more than {MOST_OPCODES} instructions")
            machine.step(name, argument)
        value = machine.pop()
    except FormatError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise FormatError(f"not a whole pickle: {error}") from error
    return Pickle(value, stream.tell() - start, list(machine.globals), machine.calls)


def _instructions(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Yield name and argument of each instruction, as `pickletools.genops` does.

    That one takes the texts of protocol 0 for ASCII; those of Python 2 hold the bytes of arrays.
    """
    name = ""
    while name != "STOP":
        code = stream.read(1).decode("latin-1")
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise ValueError(f"at byte {stream.tell()}: no instruction {code!r}")
        name = opcode.name
        if name == "STRING":
            yield name, _quoted(stream.readline())
        else:
            yield name, None if opcode.arg is None else opcode.arg.reader(stream)


def _quoted(line: bytes) -> str:
    text = line.rstrip(b"\r\n")
    if not line.endswith(b"\n") or len(text) < 2 or text[:1] not in (b"'", b'"'):
        raise ValueError("a text is not quoted")
    if text[-1:] != text[:1]:
        raise ValueError("a text has no closing quote")
    return _codecs.escape_decode(text[1:-1])[0].decode("latin-1")


class _Machine:
    """The stack and memo of an unpickler that only takes notes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, None] = {}
        self.calls: list[Call] = []
        self.protocol = 0

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise FormatError("the pickle takes from an empty stack")
        return self.stack.pop()

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack:
            item = self.stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise FormatError("the pickle has no mark")

    def _import(self, module: str, name: str) -> Global:
        if self.protocol < 3:
            # unpickling translates Python 2's names: `commands.Popen` is `subprocess.Popen`
            module, name = _compat_pickle.NAME_MAPPING.get(
                (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
            )
        full = f"{module}.{name}"
        self.globals[full] = None
        return Global(full)

    def _call(self, function: Any, arguments: Any) -> Call:
        call = Call(function, arguments)
        self.calls.append(call)
        return call

    def step(self, name: str, argument: Any) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _SEQUENCES:
            self.stack.append(_SEQUENCES[name]())
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(items[::-1]))
        elif handler := getattr(self, f"_{name.lower()}", None):
            handler(argument)
        elif argument is not None or name == "NEXT_BUFFER":
            # numbers, strings, bytes: pickletools has decoded them
            self.stack.append(argument)
        else:
            raise FormatError(f"the pickle has an unknown instruction {name}")

    def _proto(self, argument: Any) -> None:
        self.protocol = int(argument)

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        if not self.stack:
            raise FormatError("the pickle takes from an empty stack")
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _dup(self, _: Any) -> None:
        value = self.pop()
        self.stack += [value, value]

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _list(self, _: Any) -> None:
        self.stack.append(self._to_mark())

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append(Mapping(list(zip(items[::2], items[1::2], strict=False))))

    def _append(self, _: Any) -> None:
        item = self.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        target = self.pop()
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Call):
            # a Call stands for a list that we do not know
            raise FormatError("the pickle appends to what is no list")
        self.stack.append(target)

    def _setitem(self, _: Any) -> None:
        value = self.pop()
        key = self.pop()
        self._update([key, value])

    def _setitems(self, _: Any) -> None:
        self._update(self._to_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.pop()
        pairs = list(zip(items[::2], items[1::2], strict=False))
        if isinstance(target, Mapping):
            target.pairs += pairs
        elif isinstance(target, Call):
            # an OrderedDict is made by a call and filled afterwards
            if not isinstance(target.state, Mapping):
                target.state = Mapping()
            target.state.pairs += pairs
        else:
            raise FormatError("the pickle sets an item of what is no dict")
        self.stack.append(target)

    def _put(self, argument: Any) -> None:
        value = self.pop()
        self.memo[int(argument)] = value
        self.stack.append(value)

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._put(len(self.memo))

    def _get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    _binget = _long_binget = _get

    def _global(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(self._import(module, name))

    def _stack_global(self, _: Any) -> None:
        name = self.pop()
        module = self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FormatError("the pickle imports what is no name")
        self.stack.append(self._import(module, name))

    def _ext1(self, argument: Any) -> None:
        self.stack.append(self._import("copyreg", f"extension_{argument}"))

    _ext2 = _ext4 = _ext1

    def _reduce(self, _: Any) -> None:
        arguments = self.pop()
        self.stack.append(self._call(self.pop(), arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.pop()
        self._reduce(None)

    def _obj(self, _: Any) -> None:
        items = self._to_mark()
        if not items:
            raise FormatError("the pickle makes an object of nothing")
        self.stack.append(self._call(items[0], tuple(items[1:])))

    def _inst(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        items = self._to_mark()
        self.stack.append(self._call(self._import(module, name), tuple(items)))

    def _build(self, _: Any) -> None:
        state = self.pop()
        target = self.pop()
        # an OrderedDict's items are its content; the attributes set on it afterwards are not
        if isinstance(target, Call) and target.state is None:
            target.state = state
        self.stack.append(target)

    def _persid(self, argument: Any) -> None:
        self.stack.append(Persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(Persistent(self.pop()))


def walk(value: Any) -> Iterator[Any]:
    """Yield `value` and everything in it, each object once (pickles share and may be circular)."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple, Mapping, Call, Persistent)):
            if id(item) in seen:
                continue
            seen.add(id(item))
        yield item
        if isinstance(item, (list, tuple)):
            waiting += reversed(item)
        elif isinstance(item, Mapping):
            for key, content in reversed(item.pairs):
                waiting += (content, key)
        elif isinstance(item, Call):
            waiting += (item.state, item.arguments, item.function)
        elif isinstance(item, Persistent):
            waiting.append(item.key)
