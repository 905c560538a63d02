"""The plugins that exist: found as files, described by their PEP 723 blocks, never imported here.

A block is the plugin's declaration (https://peps.python.org/pep-0723/): what it needs, and in
`[tool.deploykit]` what it is. Fields: `summary`, `functions`, `formats` (converters), `devices`
(targets, the first is the default; `hetero:*` is one that takes arguments, as `hetero:gpu,cpu`, and
`auto` one that chooses among the others; `-t all` means neither), optionally `name`, `settings`,
`libraries` (of the system, each with what brings it: `libcuda.so.1`), `newest_opset` (targets: the
newest ONNX opset that is known to load and compute right), `cross` (targets: true where it compiles
for other machines than its own), `environments` (targets: a device to the dependencies that it needs
instead of the block's own) and `compiler` (converters: the framework's own compiler, which
`reference` uses when asked for it).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deploykit.errors import UnsupportedError, UsageError

FUNCTIONS = {
    "converter": ("inspect", "convert", "reference"),
    "target": ("probe", "compile", "load", "operators"),
}
"""Kind of plugin to the functions that the protocol knows for it."""

AUTO = "auto"
"""The device of a target that chooses among its others."""

_FIELDS = (
    "name",
    "summary",
    "formats",
    "devices",
    "functions",
    "settings",
    "libraries",
    "newest_opset",
    "cross",
    "compiler",
    "environments",
)
_BLOCK = re.compile(
    r"^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$", re.MULTILINE
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_ARGUMENTS = re.compile(r"[a-z0-9][a-z0-9_.,:-]*")


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One converter or target, as its file declares it."""

    kind: str
    name: str
    path: Path
    module: str
    summary: str
    formats: tuple[str, ...]
    devices: tuple[str, ...]
    functions: tuple[str, ...]
    requires_python: str
    dependencies: tuple[str, ...]
    settings: dict[str, str]
    newest_opset: int | None
    block: str
    libraries: dict[str, str] = field(default_factory=dict)
    cross: bool = False
    compiler: str = ""
    environments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    own_environment_of: str = ""

    def __str__(self) -> str:
        device = f":{self.own_environment_of}" if self.own_environment_of else ""
        return f"{self.kind} {self.name}{device}"

    def on(self, device: str) -> Plugin:
        """Return the plugin as it runs `device`: with other dependencies where the block says so."""
        own = self.environments.get(device)
        if own is None:
            return self
        return replace(self, dependencies=own, own_environment_of=device)

    def tool_uv(self) -> dict[str, Any]:
        """Return the block's `[tool.uv]` table (indexes, constraints, sources), often empty."""
        table: dict[str, Any] = tomllib.loads(self.block).get("tool", {}).get("uv", {})
        return table


def plugins(kind: str | None = None) -> tuple[Plugin, ...]:
    """Return every plugin (`kind` "converter" or "target": only those), sorted by kind and name.

    Raises UsageError, naming the file, where a block is missing or wrong, or two plugins share a
    name.
    """
    found, errors = survey()
    if errors:
        raise errors[0]
    return tuple(plugin for plugin in found if kind in (None, plugin.kind))


def survey() -> tuple[tuple[Plugin, ...], tuple[UsageError, ...]]:
    """Return the plugins that can be read, and an error for each file that cannot be used."""
    named: dict[tuple[str, str], list[Plugin]] = {}
    errors = []
    for kind, path in plugin_files():
        try:
            plugin = read_plugin(path, kind=kind)
        except UsageError as error:
            errors.append(error)
        else:
            named.setdefault((kind, plugin.name), []).append(plugin)
    errors += [_same_name(several) for several in named.values() if len(several) > 1]
    return tuple(named[key][0] for key in sorted(named) if len(named[key]) == 1), tuple(errors)


def plugin_files() -> tuple[tuple[str, Path], ...]:
    """Return kind and path of every plugin file in the folders of `deploykit._plugins`."""
    from deploykit import _plugins

    files = []
    for folder in dict.fromkeys(Path(name).resolve() for name in _plugins.__path__):
        for kind in FUNCTIONS:
            group = folder / f"{kind}s"
            entries = sorted(group.iterdir()) if group.is_dir() else []
            for entry in entries:
                file = entry / "plugin.py" if entry.is_dir() else entry
                if entry.name[0] not in "._" and file.suffix == ".py" and file.is_file():
                    files.append((kind, file))
    return tuple(files)


def read_plugin(path: Path, *, kind: str) -> Plugin:
    """Return what the file `path` declares, without importing it.

    Raises UsageError, naming the file and the field, where the block is missing or wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the plugin `{path}`: {error}") from error
    block = read_block(text, path)
    try:
        data = tomllib.loads(block)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the script block of `{path}` is not TOML: {error}") from error
    fields = _Fields(data.get("tool", {}).get("deploykit"), where=f"`{path}` [tool.deploykit]")
    stem = path.parent.name if path.name == "plugin.py" else path.stem
    if not stem.isidentifier():
        raise UsageError(f"`{path}`: a plugin is imported, and {stem!r} is no name of a module")
    tail = f"{stem}.plugin" if path.name == "plugin.py" else stem
    fields.only(_FIELDS)
    plugin = Plugin(
        kind=kind,
        name=fields.text("name", default=stem),
        path=path,
        module=f"deploykit._plugins.{kind}s.{tail}",
        summary=fields.text("summary"),
        formats=fields.texts("formats", required=kind == "converter"),
        devices=fields.texts("devices", required=kind == "target"),
        functions=fields.texts("functions", required=True),
        requires_python=_requires_python(data, path),
        dependencies=_dependencies(data.get("dependencies", []), path),
        settings=fields.table("settings"),
        newest_opset=fields.number("newest_opset"),
        libraries=fields.table("libraries"),
        environments=_environments(fields.values.get("environments", {}), path),
        block=block,
        cross=fields.flag("cross"),
        compiler=fields.text("compiler") if "compiler" in fields.values else "",
    )
    for device in plugin.environments:
        if device not in plugin.devices:
            raise UsageError(f"`{path}`: `environments` names {device!r}, which is no device of it")
    if not _NAME.fullmatch(plugin.name):
        raise UsageError(f"`{path}`: the name {plugin.name!r} is not of [a-z0-9_.-]")
    for function in plugin.functions:
        if function not in FUNCTIONS[kind]:
            known = ", ".join(FUNCTIONS[kind])
            raise UsageError(
                f"`{path}`: a {kind} has no function {function!r}", hint=f"it has: {known}"
            )
    return plugin


def read_block(text: str, path: Path) -> str:
    """Return the content of the one `# /// script` block in `text`, comment signs removed."""
    blocks = [match for match in _BLOCK.finditer(text) if match["type"] == "script"]
    if len(blocks) != 1:
        count = f"{len(blocks)} `# /// script` blocks" if blocks else "no `# /// script` block"
        raise UsageError(
            f"the plugin `{path}` has {count}",
            hint="a plugin begins with one block as of PEP 723; see docs/architecture.md",
        )
    lines = blocks[0]["content"].splitlines(keepends=True)
    return "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)


def converter(name: str) -> Plugin:
    """Return the converter called `name`.

    Raises UsageError that lists those that exist, or names a file that cannot be read.
    """
    return _named("converter", name)


def converter_for(format: str) -> Plugin:
    """Return the converter of `format`, such as `tensorflow/saved_model`.

    Raises UnsupportedError where none takes it, UsageError where several do.
    """
    candidates = [plugin for plugin in plugins("converter") if format in plugin.formats]
    if len(candidates) > 1:
        files = ", ".join(f"`{plugin.path}`" for plugin in candidates)
        raise UsageError(f"several converters claim the format `{format}`: {files}")
    if not candidates:
        known = sorted({name for plugin in plugins("converter") for name in plugin.formats})
        raise UnsupportedError(
            f"no converter takes the format `{format}`{_meant(format, known)}",
            hint=f"formats with a converter: {', '.join(known) or 'none'}",
        )
    return candidates[0]


def target(name: str) -> Plugin:
    """Return the target called `name`. Raises UsageError that lists those that exist."""
    return _named("target", name)


def parse_target(text: str) -> tuple[Plugin, str]:
    """Return target and device of `onnxruntime` (its default device) or `onnxruntime:cpu`.

    A device declared as `hetero:*` takes arguments: `openvino:hetero:gpu,cpu`. Raises UsageError
    where the target or its device is unknown.
    """
    name, colon, device = text.partition(":")
    plugin = target(name)
    if not colon:
        return plugin.on(plugin.devices[0]), plugin.devices[0]
    if not any(_is_device(device, declared) for declared in plugin.devices):
        raise UsageError(
            f"target `{name}` has no device `{device}`{_meant(device, plugin.devices)}",
            hint=f"devices of `{name}`: {', '.join(plugin.devices)}",
        )
    return plugin.on(device), device


def takes_arguments(device: str) -> bool:
    """Whether the declared `device` stands for many, and has to be completed to be used."""
    return device.endswith(":*")


def _is_device(device: str, declared: str) -> bool:
    if not takes_arguments(declared):
        return device == declared
    family = declared.removesuffix("*")
    return device.startswith(family) and bool(_ARGUMENTS.fullmatch(device.removeprefix(family)))


def find(name: str) -> Plugin:
    """Return the plugin called `name`, of either kind; `converter:NAME`, `target:NAME` say which,
    and `TARGET:DEVICE` means a target in the environment of that device.

    Raises UsageError where none or both kinds have it.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in FUNCTIONS:
        return _named(kind, rest)
    every, errors = survey()
    if colon and any(plugin.kind == "target" and plugin.name == kind for plugin in every):
        return parse_target(name)[0]
    matches = [plugin for plugin in every if plugin.name == name]
    if len(matches) > 1:
        raise UsageError(
            f"both a converter and a target are called `{name}`",
            hint=f"say `converter:{name}` or `target:{name}`",
        )
    if not matches and errors:
        raise errors[0]  # it may be the one that was asked for
    if not matches:
        names = sorted({plugin.name for plugin in every})
        raise UsageError(
            f"plugin `{name}` is unknown{_meant(name, names)}", hint=f"plugins: {', '.join(names)}"
        )
    return matches[0]


def _named(kind: str, name: str) -> Plugin:
    found, errors = survey()
    known = {plugin.name: plugin for plugin in found if plugin.kind == kind}
    if name not in known and errors:
        raise errors[0]  # it may be the one that was asked for
    if name not in known:
        raise UsageError(
            f"{kind} `{name}` is unknown{_meant(name, known)}",
            hint=f"{kind}s: {', '.join(known) or 'none'}",
        )
    return known[name]


def _same_name(several: list[Plugin]) -> UsageError:
    files = " and ".join(f"`{plugin.path}`" for plugin in several)
    return UsageError(
        f"two plugins are called {several[0]}: {files}",
        hint="give one of them another file name, or another `name` in its block",
    )


def _meant(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def _requires_python(data: dict[str, Any], path: Path) -> str:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    text = data.get("requires-python", "")
    try:
        SpecifierSet(text)
    except (InvalidSpecifier, AttributeError, TypeError) as error:
        raise UsageError(f"`{path}`: `requires-python` {text!r} is no version specifier") from error
    return str(text)


def _environments(table: object, path: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(table, dict):
        raise UsageError(f"`{path}`: `environments` is no table of lists")
    return {str(device): _dependencies(items, path) for device, items in table.items()}


def _dependencies(items: object, path: Path) -> tuple[str, ...]:
    from packaging.requirements import InvalidRequirement, Requirement

    if not isinstance(items, list):
        raise UsageError(f"`{path}`: `dependencies` is not a list")
    for item in items:
        try:
            Requirement(item)
        except (InvalidRequirement, TypeError) as error:
            raise UsageError(f"`{path}`: {item!r} in `dependencies`: {error}") from error
    return tuple(items)


class _Fields:
    """A TOML table read field by field, each of the type it must have."""

    def __init__(self, table: object, *, where: str) -> None:
        if not isinstance(table, dict):
            raise UsageError(f"{where} is missing from the script block")
        self.values: dict[str, Any] = table
        self.where = where

    def only(self, known: tuple[str, ...]) -> None:
        for name in self.values:
            if name not in known:
                raise UsageError(
                    f"{self.where} has an unknown field `{name}`{_meant(name, known)}",
                    hint=f"fields: {', '.join(known)}",
                )

    def text(self, name: str, *, default: str = "") -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{self.where} needs `{name}`, a text")
        return value

    def texts(self, name: str, *, required: bool) -> tuple[str, ...]:
        value = self.values.get(name, [])
        good = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        if not good or (required and not value):
            raise UsageError(f"{self.where} needs `{name}`, a list of texts")
        return tuple(value)

    def number(self, name: str) -> int | None:
        value = self.values.get(name)
        if value is not None and (not isinstance(value, int) or not 0 < value < 100):
            raise UsageError(f"{self.where}: `{name}` is no number of 1 to 99")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}: `{name}` is neither true nor false")
        return value

    def table(self, name: str) -> dict[str, str]:
        value = self.values.get(name, {})
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise UsageError(f"{self.where}: `{name}` is no table of texts")
        return dict(value)
