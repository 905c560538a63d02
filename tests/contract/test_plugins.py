"""What every plugin file must keep to, whatever plugins there are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import deploykit
from deploykit import plugins
from deploykit.plugins import FUNCTIONS, Plugin
from deploykit.requirements import python_satisfies

PLUGINS, PROBLEMS = plugins.survey()
every_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=str)

ARGUMENTS = {
    "inspect": ["Source"],
    "convert": ["ConvertRequest"],
    "reference": ["ReferenceRequest"],
    "probe": [],
    "compile": ["CompileRequest"],
    "load": ["LoadRequest"],
    "operators": ["OperatorsRequest"],
}
RESULTS = {
    "inspect": "Signature",
    "convert": "ConvertResult",
    "probe": "tuple[Availability, ...]",
    "compile": "CompileResult",
}

# Only the standard library and deploykit may be imported: as if nothing else were installed.
IMPORT_ALONE = """
import sys
sys.path.insert(0, sys.argv[1])

class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top != "deploykit" and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is imported at the top of the plugin", name=name)

sys.meta_path.insert(0, Nothing())
import importlib
module = importlib.import_module(sys.argv[2])
missing = [name for name in sys.argv[3:] if not callable(getattr(module, name, None))]
sys.exit(f"declared but missing: {missing}" if missing else 0)
"""


def _tree(plugin: Plugin) -> ast.Module:
    return ast.parse(plugin.path.read_text(encoding="utf-8"))


def test_every_block_is_right() -> None:
    assert [problem.message for problem in PROBLEMS] == []
    assert {plugin.kind for plugin in PLUGINS} == set(FUNCTIONS)


@every_plugin
def test_it_says_what_it_is(plugin: Plugin) -> None:
    assert 10 <= len(plugin.summary) <= 120
    assert "\n" not in plugin.summary
    assert ast.get_docstring(_tree(plugin)), "the module needs a docstring"
    for setting, meaning in plugin.settings.items():
        assert setting.replace("_", "").replace("-", "").isalnum(), setting
        assert meaning.strip(), setting


@every_plugin
def test_it_has_the_functions_of_its_kind(plugin: Plugin) -> None:
    needed = {"converter": {"convert", "reference"}, "target": {"probe", "compile", "load"}}
    assert needed[plugin.kind] <= set(plugin.functions)


@every_plugin
def test_its_functions_are_the_protocols(plugin: Plugin) -> None:
    functions = {
        node.name: node for node in _tree(plugin).body if isinstance(node, ast.FunctionDef)
    }
    for name in plugin.functions:
        if name not in functions:
            continue  # brought in from another file of its folder; the import test sees it
        arguments = functions[name].args.args
        assert [_text(argument.annotation) for argument in arguments] == ARGUMENTS[name], name
        if name in RESULTS:
            assert _text(functions[name].returns) == RESULTS[name], name
        assert functions[name].returns is not None, name
        assert ast.get_docstring(functions[name]), f"{name} needs a docstring"


def _text(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation).strip("'\"")


@every_plugin
def test_what_it_needs_can_be_had(plugin: Plugin) -> None:
    assert plugin.requires_python, "`requires-python` decides which interpreter is taken"
    assert any(python_satisfies(plugin.requires_python, f"3.{minor}.99") for minor in range(6, 16))
    requirements = [Requirement(text) for text in plugin.dependencies]
    assert requirements, "a plugin without a framework?"
    assert requirements[0].specifier or requirements[0].url, (
        f"{requirements[0]}: any version at all?"
    )


@every_plugin
def test_it_imports_with_none_of_its_dependencies(plugin: Plugin) -> None:
    root = Path(deploykit.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-I", "-c", IMPORT_ALONE, root, plugin.module, *plugin.functions],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _files(plugin: Plugin) -> list[Path]:
    return (
        sorted(plugin.path.parent.glob("*.py"))
        if plugin.path.name == "plugin.py"
        else [plugin.path]
    )


@every_plugin
def test_its_files_shadow_no_import(plugin: Plugin) -> None:
    """Run or tested where it lies, a file comes before an installed package of the same name."""
    imported = set()
    for file in _files(plugin):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    for file in _files(plugin):
        assert file.stem not in imported
        assert file.stem not in sys.stdlib_module_names
    # a folder without it is a namespace, which gives way to an installed package
    assert plugin.path.name != "plugin.py" or not (plugin.path.parent / "__init__.py").exists()


@pytest.mark.parametrize("plugin", [p for p in PLUGINS if p.kind == "converter"], ids=str)
def test_its_formats_are_its_own(plugin: Plugin) -> None:
    for name in plugin.formats:
        assert plugins.converter_for(name) == plugin


@pytest.mark.parametrize("plugin", [p for p in PLUGINS if p.kind == "target"], ids=str)
def test_its_devices_can_be_named(plugin: Plugin) -> None:
    assert plugins.parse_target(plugin.name) == (plugin, plugin.devices[0])
    for device in plugin.devices:
        assert plugins.parse_target(f"{plugin.name}:{device}") == (plugin, device)
