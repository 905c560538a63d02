"""Finding plugins and reading their blocks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit import _plugins, plugins
from deploykit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from tests.core.conftest import PluginFolder


def test_a_plugin_is_what_its_block_says(plugin_folder: PluginFolder) -> None:
    path = plugin_folder.write(
        "alpha",
        block="""requires-python = ">=3.10,<3.13"
dependencies = ["torch==2.13.0", "onnx[reference]>=1.18; python_version < '4'"]

[tool.deploykit]
name = "alpha-framework"
summary = "Alpha models"
formats = ["alpha/a", "alpha/b"]
functions = ["inspect", "convert", "reference"]

[tool.deploykit.settings]
signature = "which signature; default: the first"

[[tool.uv.index]]
name = "wheels"
url = "https://example.org/simple"
""",
        body="raise RuntimeError('a plugin is never imported to be read')\n",
    )
    (plugin,) = plugins.plugins()
    assert plugin.kind == "converter"
    assert plugin.name == "alpha-framework"
    assert plugin.path == path
    assert plugin.module == "deploykit._plugins.converters.alpha"
    assert plugin.summary == "Alpha models"
    assert plugin.formats == ("alpha/a", "alpha/b")
    assert plugin.devices == ()
    assert plugin.functions == ("inspect", "convert", "reference")
    assert plugin.requires_python == ">=3.10,<3.13"
    assert plugin.dependencies == (
        "torch==2.13.0",
        "onnx[reference]>=1.18; python_version < '4'",
    )
    assert plugin.settings == {"signature": "which signature; default: the first"}
    assert plugin.tool_uv() == {"index": [{"name": "wheels", "url": "https://example.org/simple"}]}


def test_a_folder_with_plugin_py_is_one_plugin(plugin_folder: PluginFolder) -> None:
    group = plugin_folder.write("caffe2").parent
    (group / "big").mkdir()
    (group / "caffe2.py").rename(group / "big" / "plugin.py")
    (group / "big" / "_proto.py").write_text("not a plugin\n")
    (group / "_private.py").write_text("not a plugin\n")
    (group / "__pycache__").mkdir()
    (group / "notes.txt").write_text("not a plugin\n")
    (plugin,) = plugins.plugins()
    assert plugin.name == "big"
    assert plugin.module == "deploykit._plugins.converters.big.plugin"


def test_a_folder_on_the_path_twice_counts_once(
    plugin_folder: PluginFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin_folder.write("alpha")
    twice = [str(plugin_folder.folder), f"{plugin_folder.folder}/../plugins"]
    monkeypatch.setattr(_plugins, "__path__", twice)
    assert [plugin.name for plugin in plugins.plugins()] == ["alpha"]


def test_plugins_are_sorted_and_chosen_by_kind(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("zeta")
    plugin_folder.write("alpha")
    plugin_folder.write("beta", kind="target")
    assert [str(p) for p in plugins.plugins()] == [
        "converter alpha",
        "converter zeta",
        "target beta",
    ]
    assert [p.name for p in plugins.plugins("target")] == ["beta"]


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("dependencies = [", "not TOML"),
        ('dependencies = ["=="]\n[tool.deploykit]', "`summary`"),
        ('[tool.deploykit]\nsummary="s"\nfunctions=["convert"]', "`formats`"),
        ('[tool.deploykit]\nsummary="s"\nformats="a"\nfunctions=["convert"]', "`formats`"),
        ('[tool.deploykit]\nsummary="s"\nformats=["a"]', "`functions`"),
        ('[tool.deploykit]\nsummary="s"\nformats=["a"]\nfunctions=["load"]', "no function 'load'"),
        ('[tool.deploykit]\nsummry="s"', "`summry` (did you mean `summary`?)"),
        (
            '[tool.deploykit]\nname="A b"\nsummary="s"\nformats=["a"]\nfunctions=["convert"]',
            "'A b'",
        ),
        (
            'dependencies = ["=="]\n[tool.deploykit]\nsummary="s"\nformats=["a"]\nfunctions=["convert"]',
            "'==' in `dependencies`",
        ),
        (
            'requires-python = "three"\n[tool.deploykit]\nsummary="s"\nformats=["a"]\nfunctions=["convert"]',
            "`requires-python` 'three'",
        ),
        (
            '[tool.deploykit]\nsummary="s"\nformats=["a"]\nfunctions=["convert"]\nsettings={a=1}',
            "settings",
        ),
        ("x = 1", "[tool.deploykit] is missing"),
    ],
)
def test_a_broken_block_is_an_error_that_names_the_file(
    plugin_folder: PluginFolder, block: str, complaint: str
) -> None:
    path = plugin_folder.write("broken", block=block)
    plugin_folder.write("good")
    with pytest.raises(UsageError) as error:
        plugins.plugins()
    assert str(path) in error.value.message
    assert complaint in error.value.message
    found, errors = plugins.survey()
    assert [plugin.name for plugin in found] == ["good"]
    assert [item.message for item in errors] == [error.value.message]
    # it does not stand in the way of the others, and is named where it may be the one meant
    assert plugins.converter("good").name == "good"
    with pytest.raises(UsageError, match=r"broken\.py"):
        plugins.converter("broken")


@pytest.mark.parametrize("text", ["", "print('no block')\n", "# /// script\n# a = 1\n"])
def test_a_file_without_a_block_is_an_error(plugin_folder: PluginFolder, text: str) -> None:
    path = plugin_folder.write("alpha")
    path.write_text(text)
    with pytest.raises(UsageError, match="has no `# /// script` block"):
        plugins.plugins()


def test_two_blocks_are_an_error(plugin_folder: PluginFolder) -> None:
    path = plugin_folder.write("alpha")
    path.write_text(path.read_text() + "\n" + path.read_text())
    with pytest.raises(UsageError, match="has 2 `# /// script` blocks"):
        plugins.plugins()


def test_bytes_that_are_no_text_are_an_error(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read the plugin"):
        plugins.plugins()


def test_a_file_that_cannot_be_imported_is_an_error(plugin_folder: PluginFolder) -> None:
    path = plugin_folder.write("alpha")
    path.rename(path.with_name("two-words.py"))
    with pytest.raises(UsageError, match="'two-words' is no name of a module"):
        plugins.plugins()


def test_two_plugins_of_one_name_are_an_error(plugin_folder: PluginFolder) -> None:
    path = plugin_folder.write("alpha")
    other = plugin_folder.write("other")
    other.write_text(path.read_text().replace("summary", 'name = "alpha"\n# summary', 1))
    with pytest.raises(UsageError, match="two plugins are called converter alpha") as error:
        plugins.plugins()
    assert str(other) in error.value.message
    with pytest.raises(UsageError, match="two plugins are called converter alpha"):
        plugins.find("alpha")


def test_a_converter_and_a_target_may_share_a_name(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("onnx")
    plugin_folder.write("onnx", kind="target")
    assert plugins.converter("onnx").kind == "converter"
    assert plugins.target("onnx").kind == "target"
    with pytest.raises(UsageError, match="both a converter and a target"):
        plugins.find("onnx")
    assert plugins.find("target:onnx").kind == "target"


def test_an_unknown_name_is_answered_with_the_nearest(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("pytorch")
    plugin_folder.write("paddle")
    with pytest.raises(UsageError) as error:
        plugins.converter("pytorh")
    assert error.value.message == "converter `pytorh` is unknown (did you mean `pytorch`?)"
    assert error.value.hint == "converters: paddle, pytorch"
    with pytest.raises(UsageError, match="plugin `padle` is unknown"):
        plugins.find("padle")


def test_a_format_finds_its_converter(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha")
    assert plugins.converter_for("alpha/model").name == "alpha"
    with pytest.raises(UnsupportedError) as error:
        plugins.converter_for("alpha/modl")
    assert "did you mean `alpha/model`?" in error.value.message
    assert error.value.hint == "formats with a converter: alpha/model"
    other = plugin_folder.write("beta")
    other.write_text(other.read_text().replace("beta/model", "alpha/model"))
    with pytest.raises(UsageError, match="several converters claim the format `alpha/model`"):
        plugins.converter_for("alpha/model")


def test_a_target_with_and_without_device(plugin_folder: PluginFolder) -> None:
    path = plugin_folder.write("tvm", kind="target")
    path.write_text(path.read_text().replace('["cpu"]', '["cpu", "cuda"]'))
    assert plugins.parse_target("tvm")[1] == "cpu"
    assert plugins.parse_target("tvm:cuda")[1] == "cuda"
    with pytest.raises(UsageError) as error:
        plugins.parse_target("tvm:cud")
    assert "did you mean `cuda`?" in error.value.message
    assert error.value.hint == "devices of `tvm`: cpu, cuda"
    with pytest.raises(UsageError, match="target `tvmm` is unknown"):
        plugins.parse_target("tvmm:cpu")


OWN = """dependencies = ["framework"]

[tool.deploykit]
summary = "a target of the tests"
devices = ["cpu", "gpu"]
functions = ["probe", "compile", "load"]

[tool.deploykit.environments]
gpu = ["framework-gpu>=2"]
"""


def test_a_device_may_have_other_dependencies(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha", kind="target", block=OWN)
    plugin, _ = plugins.parse_target("alpha")
    own, device = plugins.parse_target("alpha:gpu")
    assert (plugin.dependencies, plugin.on("cpu"), device) == (("framework",), plugin, "gpu")
    assert own.dependencies == ("framework-gpu>=2",)
    assert (str(plugin), str(own)) == ("target alpha", "target alpha:gpu")
    assert plugins.find("alpha:gpu") == own == plugin.on("gpu")
    with pytest.raises(UsageError, match="no device `tpu`"):
        plugins.find("alpha:tpu")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('tpu = ["framework"]', "'tpu', which is no device"),
        ('gpu = "framework"', "not a list"),
        ('gpu = ["no such==="]', "no such==="),
    ],
)
def test_a_wrong_environment_is_an_error(
    plugin_folder: PluginFolder, table: str, said: str
) -> None:
    block = OWN.replace('gpu = ["framework-gpu>=2"]', table)
    path = plugin_folder.write("alpha", kind="target", block=block)
    with pytest.raises(UsageError, match=said) as raised:
        plugins.plugins()
    assert str(path) in raised.value.message


def test_no_folders_no_plugins(plugin_folder: PluginFolder) -> None:
    assert plugins.plugins() == ()
    with pytest.raises(UsageError) as error:
        plugins.target("tvm")
    assert error.value.hint == "targets: none"


def test_the_plugin_path_variable_adds_a_folder(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("users_own")
    code = (
        "import importlib, sys\n"
        "from deploykit import plugins\n"
        "plugin = plugins.converter('users_own')\n"
        "assert 'deploykit._plugins.converters.users_own' not in sys.modules\n"
        "print(importlib.import_module(plugin.module).__doc__)\n"
    )
    root = Path(plugins.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "DEPLOYKIT_PLUGIN_PATH": str(plugin_folder.folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "A plugin of the tests.\n"


def test_reading_every_plugin_is_quick() -> None:
    plugins.survey()  # imports packaging
    best = min(_seconds() for _ in range(5))
    assert best < 0.05


def _seconds() -> float:
    begun = time.perf_counter()
    plugins.survey()
    return time.perf_counter() - begun
