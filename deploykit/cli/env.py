"""`deploykit env`: the environments of the plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from deploykit.cli.console import console
from deploykit.cli.options import output_style
from deploykit.errors import DeploykitError, InstallError, UnavailableError, UsageError

if TYPE_CHECKING:
    from deploykit.environments import Environment
    from deploykit.plugins import Plugin


@click.group("env")
def command() -> None:
    """List, create and remove the environments of the plugins.

    Each plugin that needs packages which this Python lacks gets an isolated environment, made on
    first use and shared by plugins with the same needs. Your own environment is never changed.
    """


@command.command("list")
@output_style
def list_() -> None:
    """List the environments: key, users, Python, size, folder."""
    from deploykit.environments import environments

    found = environments()

    def human() -> Any:
        from deploykit.cli.tables import table

        if not found:
            return "no environments yet; each is made on first use, or by `deploykit env create`"
        rows = (
            (
                item.key,
                ", ".join(item.plugins) or "nothing (remove it)",
                item.python_version or "-",
                f"{item.size_bytes / 1e6:.0f}" if item.created else "-",
                item.created or "unfinished",
                str(item.folder),
            )
            for item in found
        )
        return table("", ["key", "used by", "python", "size MB ", "made", "folder"], rows)

    console.emit({"environments": [item.to_json() for item in found]}, human)


@command.command("create")
@click.argument("names", nargs=-1, required=True, metavar="NAME...|all")
@output_style
def create(names: tuple[str, ...]) -> None:
    """Make the environments of the plugins NAME now, or of all.

    \b
    deploykit env create pytorch tvm
    deploykit env create all
    """
    from deploykit import environments
    from deploykit.requirements import unmet

    results = []
    failed = []
    chosen = _chosen(names)
    for plugin in chosen:
        if not unmet(plugin):
            results.append(_result(plugin, "not needed: this Python has all of it", None))
            continue
        there = environments.lookup(plugin)
        try:
            made = there or environments.create(plugin, listen=console.listener())
        except DeploykitError as error:
            if len(chosen) == 1:
                raise
            console.error(error)
            failed.append(plugin.name)
            continue
        results.append(_result(plugin, "there" if there else "made", made))
    console.emit({"environments": results, "failed": failed}, lambda: _lines(results))
    if failed:
        raise InstallError(f"not made: {', '.join(failed)}", hint="the reasons are above")


@command.command("remove")
@click.argument("names", nargs=-1, metavar="NAME|KEY...")
@click.option("--all", "everything", is_flag=True, help="Remove every environment.")
@output_style
def remove(names: tuple[str, ...], everything: bool) -> None:
    """Remove environments, by plugin name or by key. They are made again when needed.

    \b
    deploykit env remove pytorch
    deploykit env remove --all
    """
    from deploykit import environments

    if bool(names) == everything:
        raise UsageError(
            "say what to remove: names or keys, or `--all`", hint="`deploykit env list` shows them"
        )
    existing = {item.key: item for item in environments.environments()}
    chosen = existing if everything else {item.key: item for item in _made(names, existing)}
    results = []
    for item in chosen.values():
        environments.remove(item, listen=console.listener())
        users = f" ({', '.join(item.plugins)})" if item.plugins else ""
        results.append({"plugin": f"{item.key}{users}", "state": "removed", **_place(item)})
    console.emit({"removed": results}, lambda: _lines(results, empty="there was none to remove"))


@command.command("path")
@click.argument("name")
@output_style
def path(name: str) -> None:
    """Print the folder of the environment that runs the plugin NAME.

    \b
    $(deploykit env path pytorch)/bin/python
    """
    import sys

    from deploykit import environments, plugins
    from deploykit.requirements import unmet

    plugin = plugins.find(name)
    if not unmet(plugin):
        folder, python = sys.prefix, sys.executable
    else:
        found = environments.lookup(plugin)
        if found is None:
            raise UnavailableError(
                f"the environment of {plugin} is not made yet",
                hint=f"make it with `deploykit env create {name}`",
            )
        folder, python = str(found.folder), str(found.python)
    result = {"plugin": str(plugin), "folder": folder, "python": python}
    console.emit(result, lambda: _plain(folder))


def _chosen(names: tuple[str, ...]) -> list[Plugin]:
    from deploykit import plugins

    if "all" in names:
        return list(plugins.plugins())
    return [plugins.find(name) for name in dict.fromkeys(names)]


def _made(names: tuple[str, ...], existing: dict[str, Environment]) -> list[Environment]:
    """Return the environments that `names` (keys or plugins) mean."""
    from deploykit import environments, plugins

    chosen = []
    for name in names:
        key = name if name in existing else environments.key_of(plugins.find(name))
        if key not in existing:
            raise UsageError(
                f"`{name}` has no environment", hint="`deploykit env list` shows those that exist"
            )
        chosen.append(existing[key])
    return chosen


def _place(made: Environment | None) -> dict[str, str | None]:
    if made is None:
        return {"folder": None, "python": None}
    return {"folder": str(made.folder), "python": str(made.python)}


def _result(plugin: Plugin, state: str, made: Environment | None) -> dict[str, str | None]:
    return {"plugin": str(plugin), "state": state, **_place(made)}


def _lines(results: list[dict[str, str | None]], *, empty: str = "nothing to do") -> Any:
    lines = [
        f"{item['plugin']}: {item['state']}" + (f", {item['folder']}" if item["folder"] else "")
        for item in results
    ]
    return _plain("\n".join(lines) or empty)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)
