"""`deploykit hardware`, as the user calls it."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from deploykit.hardware import hardware, hardware_profiles

from .conftest import CommandLine


def test_a_name_that_is_nearly_right(deploykit: CommandLine) -> None:
    done = deploykit("hardware", "raspberry-pi5")
    assert done.code == 2
    assert done.errors == [
        "error: hardware `raspberry-pi5` is unknown (did you mean `raspberry-pi-5`?)"
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nvidia-t4", "--this"], "give no NAME with it"),
        (["-o", "x.toml"], "`-o` writes what `--this` measures"),
        (["--this", "-o", "x.json"], "`x.json` is no name of a profile"),
        (["--this", "-o", "My Box.toml"], "`My Box.toml` is no name of a profile"),
        (["absent.toml"], "cannot read the hardware profile `absent.toml`"),
    ],
)
def test_words_that_make_no_sense(deploykit: CommandLine, words: list[str], told: str) -> None:
    done = deploykit("hardware", *words)
    assert done.code == 2
    (error,) = done.errors
    assert told in error
    assert "Traceback" not in done.stderr
    assert list(deploykit.folder.iterdir()) == []


def test_an_existing_file_is_kept(deploykit: CommandLine) -> None:
    (deploykit.folder / "mine.toml").write_text("mine")
    done = deploykit("hardware", "--this", "-o", "mine.toml")
    assert done.code == 8
    assert done.errors == ["error: `mine.toml` exists already"]
    assert (deploykit.folder / "mine.toml").read_text() == "mine"


def test_the_list(deploykit: CommandLine) -> None:
    done = deploykit("hardware")
    assert done.code == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line[:2].strip()}
    for profile in hardware_profiles():
        assert rows[profile.name][1:3] == [profile.kind, profile.cpu]
    assert rows["raspberry-pi-5"][4:] == (
        ["153.6", "G", "307.2", "G", "614.4", "G", "17.07", "GB", "8", "GiB", "25"]
    )


def test_a_broken_profile_hides_no_other(deploykit: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "own" / "profiles"
    folder.mkdir(parents=True)
    (folder / "broken.toml").write_text("kind = 1\n")
    deploykit.variables["DEPLOYKIT_PLUGIN_PATH"] = str(tmp_path / "own")
    done = deploykit("hardware")
    assert done.code == 0
    assert any(
        line.startswith("problem: `") and "broken.toml" in line for line in done.stdout.splitlines()
    )
    assert "raspberry-pi-5" in done.stdout
    found = json.loads(deploykit("hardware", "--json").stdout)
    assert len(found["problems"]) == 1
    assert len(found["profiles"]) == len(hardware_profiles())
    assert deploykit("hardware", "raspberry-pi-5").code == 0
    assert deploykit("hardware", "broken").code == 2


def test_one_profile_with_the_source_of_every_figure(deploykit: CommandLine) -> None:
    done = deploykit("hardware", "nvidia-l4")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("nvidia-l4: NVIDIA L4")
    assert "triple: x86_64-linux-gnu" in lines
    assert "device gpu: NVIDIA L4 (Ada Lovelace), sm_89 (cuda, vulkan, opencl)" in lines
    (int8,) = (line for line in lines if "gpu: peak int8" in line)
    assert "242.5 TOP/s" in int8
    assert "485e12 OP * 0.5 dense" in int8
    profile = hardware("nvidia-l4")
    number = int8.split()[-1]
    assert f"[{number}] {profile.sources['datasheet']}" in lines
    assert any(line.lstrip().startswith("price, AWS g6.xlarge, us-east-1") for line in lines)
    found = json.loads(deploykit("hardware", "nvidia-l4", "--json").stdout)
    assert found["devices"]["gpu"]["peak_ops_per_s"]["int8"]["value"] == 242.5e12


@pytest.mark.environment
def test_this_machine_becomes_a_profile(deploykit: CommandLine) -> None:
    done = deploykit("hardware", "--this", "-o", "mine.toml", timeout=600)
    assert done.code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "profile: mine.toml"
    assert "ok    measuring this machine" in done.stderr
    profile = hardware(deploykit.folder / "mine.toml")
    assert profile.name == "mine"
    assert profile.to_request().architecture == platform.machine()
    assert profile.cores is not None
    assert 1 <= profile.cores.value <= len(os.sched_getaffinity(0))
    cpu = profile.devices["cpu"]
    assert {"fp32", "fp64", "int8"} <= set(cpu.peak_ops_per_s)
    assert cpu.bandwidth_bytes_per_s is not None
    for figure in (*cpu.peak_ops_per_s.values(), cpu.bandwidth_bytes_per_s):
        assert figure.sources == ("measured",)
        assert "repetitions" in figure.note
        assert "thread" in figure.note
    assert "mine: " in deploykit("hardware", "./mine.toml").stdout
    assert deploykit.left_behind() == []


@pytest.mark.environment
def test_this_machine_as_json(deploykit: CommandLine) -> None:
    deploykit.variables["OPENBLAS_CORETYPE"] = "Nehalem"
    done = deploykit("hardware", "--this", "--json", "--quiet", timeout=600)
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    best: dict[str, float] = {}
    for rate in found["rates"]:
        assert rate["best"] >= rate["median"] >= rate["worst"] > 0
        assert rate["threads"] >= 1
        best[rate["what"]] = max(rate["best"], best.get(rate["what"], 0))
    peaks = found["profile"]["devices"]["cpu"]["peak_ops_per_s"]
    for what, figure in peaks.items():
        assert figure["value"] == pytest.approx(best[what], rel=1e-3)
    assert any("OPENBLAS_CORETYPE=Nehalem is set" in note for note in found["notes"])
    if platform.machine() == "x86_64":
        kernels = {rate["about"].partition("(")[2] for rate in found["rates"]}
        forced = {text for text in kernels if "Nehalem kernels" in text}
        assert forced or not any("openblas" in text for text in kernels)
        assert len(forced) < len(kernels)
