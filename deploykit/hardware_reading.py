"""Hardware profiles read from TOML files, with every field checked and every error naming its field."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deploykit.errors import UsageError
from deploykit.hardware_profile import (
    APIS,
    BYTES_OF,
    DEVICES,
    FORMULA_TOLERANCE,
    KINDS,
    SCHEMA,
    Device,
    Figure,
    Price,
    Profile,
    Source,
    product_of,
)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""What a profile, and a source in it, may be called."""

LARGEST_BYTES = 1 << 20
"""No profile is that long; a file that is is something else."""

_TRIPLE = re.compile(
    r"(x86_64|i686|aarch64|arm64|armv[678]\w*|riscv64|riscv32|ppc64le|s390x|loongarch64|wasm32|wasm64)"
    r"(-[a-z0-9_.]+){1,3}"
)
_FEATURE = re.compile(r"[+-][a-z0-9][a-z0-9._-]*")
_WORD = re.compile(r"[A-Za-z0-9][\w.-]*")
_DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")

FIGURES = ("cores", "threads", "memory_bytes", "power_w")
"""Those of the profile itself."""
_WHOLE = ("cores", "threads", "memory_bytes")


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Return the profile in the TOML file `path`; it is called like the file.

    Raises UsageError, naming the file, the field, and what to do, where it cannot be read or does
    not fit the schema.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the hardware profile `{path}`: {error.strerror or error}",
            hint="`deploykit hardware` lists the profiles that come with deploykit",
        ) from error
    if len(content) > LARGEST_BYTES:
        raise UsageError(
            f"`{path}` is no hardware profile: it is longer than {LARGEST_BYTES} bytes"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` is no hardware profile: it is not UTF-8") from error
    return parse_profile(text, name=path.stem, where=f"`{path}`")


def parse_profile(text: str, *, name: str, where: str) -> Profile:
    """Return the profile called `name` that the TOML `text` describes; errors begin with `where`.

    Raises UsageError where it does not fit the schema.
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where} is not TOML: {error}") from error
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{where}: a profile is called like its file, and {name!r} is not of [a-z0-9._-]",
            hint="rename the file, for example to `my-board.toml`",
        )
    top = _Table(data, where)
    if top.whole("schema") != SCHEMA:
        raise top.error("schema", f"this version of deploykit reads schema {SCHEMA}")
    sources = {key: _source(table) for key, table in top.tables("sources").items()}
    for key in sources:
        if not NAME.fullmatch(key):
            raise top.error(f"sources.{key}", "is not of [a-z0-9._-]")
    top.sources = sources
    profile = Profile(
        name=name,
        summary=top.text("summary"),
        kind=top.one_of("kind", KINDS),
        triple=top.matching("triple", _TRIPLE, "an LLVM triple, such as `aarch64-linux-gnu`"),
        cpu=top.matching("cpu", _WORD, "LLVM's name of a processor", default=""),
        features=top.texts("features", _FEATURE, "LLVM's features, such as `+dotprod`"),
        flags=top.texts("flags", _WORD, "the kernel's names, as in /proc/cpuinfo"),
        **{key: top.figure(key, whole=key in _WHOLE) for key in FIGURES},
        devices={key: _device(table) for key, table in top.tables("devices", DEVICES).items()},
        prices=tuple(_price(table) for table in top.items("prices")),
        sources=sources,
    )
    top.only()
    return profile


def _source(table: _Table) -> Source:
    source = Source(
        title=table.text("title"),
        publisher=table.text("publisher"),
        date=table.matching("date", _DATE, "a date: 2023, 2023-10 or 2023-10-05", default=""),
        document=table.text("document", default=""),
        url=table.text("url", default=""),
    )
    table.only()
    if not source.date and not source.document:
        raise table.error("date", "is missing, and so is `document`: say which version it is")
    if source.url and not source.url.startswith("https://"):
        raise table.error("url", "does not begin with https://")
    return source


def _device(table: _Table) -> Device:
    apis = table.texts("apis", _WORD, "names of APIs")
    for api in apis:
        if api not in APIS:
            raise table.error(
                "apis", f"has `{api}`{_meant(api, APIS)}", hint=f"APIs: {', '.join(APIS)}"
            )
    if not apis:
        raise table.error("apis", "is missing: by which APIs do programs reach the device?")
    peaks = table.table("peak_ops_per_s")
    device = Device(
        title=table.text("title"),
        apis=apis,
        architecture=table.matching("architecture", _WORD, "one word", default=""),
        memory_bytes=table.figure("memory_bytes", whole=True),
        bandwidth_bytes_per_s=table.figure("bandwidth_bytes_per_s"),
        peak_ops_per_s={
            dtype: figure for dtype in BYTES_OF if (figure := peaks.figure(dtype)) is not None
        },
    )
    peaks.only()
    table.only()
    return device


def _price(table: _Table) -> Price:
    price = Price(
        provider=table.text("provider"),
        instance=table.text("instance"),
        region=table.text("region"),
        usd_per_hour=table.number("usd_per_hour"),
        share=table.number("share"),
        sources=table.source_names(),
        note=table.text("note", default=""),
    )
    table.only()
    return price


class _Table:
    """A TOML table read field by field, each checked; what nobody asked for is an error."""

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        inside: str = "",
        sources: Collection[str] = (),
    ) -> None:
        self.values = values
        self.where = where
        self.inside = inside
        self.sources = sources
        self.asked: list[str] = []

    def error(self, field: str, what: str, *, hint: str = "") -> UsageError:
        table = f" [{self.inside}]" if self.inside else ""
        return UsageError(f"{self.where}{table}: `{field}` {what}", hint=hint)

    def only(self) -> None:
        """Raise UsageError where the table has a field that was not read."""
        for key in self.values:
            if key not in self.asked:
                raise self.error(
                    key,
                    f"is no field of a profile{_meant(key, self.asked)}",
                    hint=f"fields there: {', '.join(self.asked)}",
                )

    def _get(self, key: str) -> Any:
        self.asked.append(key)
        return self.values.get(key)

    def text(self, key: str, *, default: str | None = None) -> str:
        value = self._get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.error(key, "is missing: a text is needed")
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"is {value!r}: a text is needed")
        if value != " ".join(value.split()) or not value.isprintable():
            raise self.error(key, "is not one line of plain text")
        return value

    def one_of(self, key: str, known: Collection[str]) -> str:
        value = self.text(key)
        if value not in known:
            raise self.error(
                key, f"is `{value}`{_meant(value, known)}", hint=f"one of {', '.join(known)}"
            )
        return value

    def matching(
        self, key: str, pattern: re.Pattern[str], what: str, *, default: str | None = None
    ) -> str:
        value = self.text(key, default=default)
        if value != default and not pattern.fullmatch(value):
            raise self.error(key, f"is {value!r}: {what} is needed")
        return value

    def texts(self, key: str, pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(key, "is no list of texts")
        for item in value:
            if not pattern.fullmatch(item):
                raise self.error(key, f"has {item!r}: {what} are needed")
            if value.count(item) > 1:
                raise self.error(key, f"has `{item}` twice")
        return tuple(value)

    def number(self, key: str) -> float:
        """Return a positive number, an int where the file has one."""
        value = self._get(key)
        if value is None:
            raise self.error(key, "is missing: a number is needed")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"is {value!r}: a number is needed")
        if not math.isfinite(value) or value <= 0 or value > 1e30:
            raise self.error(
                key, f"is {value}: a number above zero is needed", hint="leave out what is unknown"
            )
        return value

    def whole(self, key: str) -> int:
        value = self.number(key)
        if value != int(value):
            raise self.error(key, f"is {value}: a whole number is needed")
        return int(value)

    def source_names(self) -> tuple[str, ...]:
        names = self.texts("sources", NAME, "keys of [sources]")
        if not names:
            raise self.error(
                "sources",
                "is missing: every figure needs a source",
                hint='add `sources = ["KEY"]`, and `[sources.KEY]` with `title`, `publisher`, `date`',
            )
        for name in names:
            if name not in self.sources:
                raise self.error(
                    "sources",
                    f"names `{name}`, which [sources] does not have{_meant(name, self.sources)}",
                    hint=f"sources in the file: {', '.join(self.sources) or 'none'}",
                )
        return names

    def figure(self, key: str, *, whole: bool = False) -> Figure | None:
        if self._get(key) is None:
            return None
        table = self._sub(key, self.values[key])
        figure = Figure(
            value=table.whole("value") if whole else table.number("value"),
            sources=table.source_names(),
            formula=table.text("formula", default=""),
            note=table.text("note", default=""),
        )
        table.only()
        if figure.formula:
            try:
                computed = product_of(figure.formula)
            except ValueError as error:
                raise table.error(
                    "formula",
                    f"cannot be computed: {error}",
                    hint="write `4 cores * 2.4e9 Hz * 16 FLOP`, sums of products of numbers",
                ) from error
            if not math.isclose(computed, figure.value, rel_tol=FORMULA_TOLERANCE):
                raise table.error("formula", f"comes to {computed:g}, not to {figure.value:g}")
        return figure

    def table(self, key: str) -> _Table:
        value = self._get(key)
        return self._sub(key, {} if value is None else value)

    def tables(self, key: str, known: Collection[str] = ()) -> dict[str, _Table]:
        """Return the tables in the table `key`, by name; `known` are the names that may be."""
        outer = self.table(key)
        for name in outer.values:
            if known and name not in known:
                raise outer.error(
                    name, f"is unknown{_meant(name, known)}", hint=f"one of {', '.join(known)}"
                )
        return {name: outer._sub(name, value) for name, value in outer.values.items()}

    def items(self, key: str) -> list[_Table]:
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(key, f"is no list of tables: write [[{key}]]")
        return [self._sub(f"{key}[{i}]", item) for i, item in enumerate(value)]

    def _sub(self, key: str, value: object) -> _Table:
        if not isinstance(value, dict):
            raise self.error(
                key, "is no table", hint=f"write `[{key}]` and its fields below it, one a line"
            )
        inside = f"{self.inside}.{key}" if self.inside else key
        return _Table(value, self.where, inside, self.sources)


def _meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""
