"""The profiles that come with deploykit: every file fits the schema and says what is true elsewhere too."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploykit import environments, plugins
from deploykit.hardware_profile import FORMULA_TOLERANCE, Figure, Price, Profile, product_of
from deploykit.hardware_reading import parse_profile, read_profile
from deploykit.llvm_names import AMD, ARM, ARM_FEATURES, INTEL, X86_FEATURES, X86_LEVELS
from deploykit.machine import FLAGS

FOLDER = Path(__file__).resolve().parents[2] / "profiles"
FILES = sorted(FOLDER.glob("*.toml"))
PROMISED = {
    *("x86-64-v2", "x86-64-v3", "x86-64-v4"),
    *("intel-ice-lake", "intel-sapphire-rapids", "amd-milan", "amd-genoa"),
    *("aws-graviton3", "aws-graviton4", "ampere-altra"),
    *("raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "jetson-agx-orin"),
    *("rockchip-rk3588", "snapdragon-8-gen-2", "snapdragon-8-gen-3", "apple-a16", "apple-a17-pro"),
    *("nvidia-t4", "nvidia-l4", "nvidia-a10", "nvidia-a100", "nvidia-h100", "nvidia-rtx-4090"),
    *("intel-iris-xe", "intel-core-ultra-155h", "intel-core-ultra-258v", "browser"),
}
# What a wider element type costs, on every device here: never more operations than a narrower one.
NARROWER = (
    ("fp64", "fp32"),
    ("fp32", "fp16"),
    ("bf16", "int8"),
    ("fp16", "int8"),
    ("int8", "int4"),
)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def profile(request: pytest.FixtureRequest) -> Profile:
    """Each shipped profile."""
    return read_profile(request.param)


def cited(value: object) -> Iterator[Figure | Price]:
    """Yield every figure and price in `value`."""
    if isinstance(value, (Figure, Price)):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from cited(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from cited(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from cited(vars(value))


def test_what_was_promised_is_there() -> None:
    assert {path.stem for path in FILES} >= PROMISED


def test_the_example_of_the_readme_is_a_profile() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    profile = parse_profile(text, name="my-board", where="README.md")
    assert profile.devices["cpu"].ops_per_byte("fp32") == pytest.approx(9, rel=0.01)


def test_every_figure_has_its_source(profile: Profile) -> None:
    for figure in cited(profile):
        assert figure.sources
        assert set(figure.sources) <= set(profile.sources)
    used = {name for figure in cited(profile) for name in figure.sources}
    if used:
        assert set(profile.sources) == used


def test_every_computed_figure_is_its_formula(profile: Profile) -> None:
    for figure in cited(profile):
        if isinstance(figure, Figure) and figure.formula:
            assert product_of(figure.formula) == pytest.approx(figure.value, rel=FORMULA_TOLERANCE)


def test_figures_go_together(profile: Profile) -> None:
    for device in profile.devices.values():
        peaks = device.peak_ops_per_s
        for wide, narrow in NARROWER:
            if wide in peaks and narrow in peaks:
                assert peaks[wide].value <= peaks[narrow].value, (device.title, wide, narrow)
        if device.bandwidth_bytes_per_s is not None:
            assert 1e9 < device.bandwidth_bytes_per_s.value < 1e13
        assert all(1e9 < peak.value < 1e16 for peak in peaks.values())
    if profile.cores is not None and profile.threads is not None:
        assert profile.threads.value % profile.cores.value == 0
    if profile.cores is not None:
        for figure in cited(profile.devices.get("cpu")):
            if isinstance(figure, Figure) and "cores" in figure.formula:
                assert figure.formula.startswith(f"{profile.cores.value} cores")
    if "cuda" in (profile.devices["gpu"].apis if "gpu" in profile.devices else ()):
        assert profile.gpu.startswith("sm_")


def test_flags_are_those_that_the_machine_tells(profile: Profile) -> None:
    assert set(profile.flags) <= FLAGS


def test_it_becomes_a_request(profile: Profile) -> None:
    request = profile.to_request()
    assert request.name == profile.name
    assert request.triple == profile.triple
    assert request.architecture in ("x86_64", "aarch64", "arm64", "wasm32")


ASK_LLVM = """
    import json, sys
    from tvm.target import Target, codegen
    answers = []
    for triple, cpu, features in json.load(sys.stdin):
        asked = {"kind": "llvm", "mtriple": triple, "mcpu": cpu, "mattr": features}
        target = Target({key: value for key, value in asked.items() if value})
        answers.append({
            "cpu": cpu in set(map(str, codegen.llvm_get_cpu_archlist(target))),
            "features": sorted(map(str, codegen.llvm_get_cpu_features(target))),
        })
    print(json.dumps(answers))
"""


def llvm(questions: list[tuple[str, str, list[str]]]) -> tuple[list[dict[str, Any]], str]:
    """Ask the LLVM that TVM brings: is the processor known, and which features has it then?"""
    python = environments.interpreter(plugins.target("tvm"))
    done = subprocess.run(
        [python, "-c", textwrap.dedent(ASK_LLVM)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers, done.stderr


@pytest.mark.environment
def test_llvm_knows_every_name_in_the_profiles() -> None:
    found = [read_profile(path) for path in FILES]
    answers, warnings = llvm([(p.triple, p.cpu, list(p.features)) for p in found])
    assert "not a recognized feature" not in warnings
    for profile, answer in zip(found, answers, strict=True):
        assert answer["cpu"], profile.name
        for feature in profile.features:
            assert (feature[1:] in answer["features"]) == (feature[0] == "+"), profile.name


@pytest.mark.environment
def test_llvm_knows_every_name_of_a_fingerprint() -> None:
    x86 = {name for name, _ in X86_LEVELS} | set(INTEL) | {name for name, _ in AMD}
    x86 |= {"skylake-avx512", "cascadelake", "cooperlake"}
    questions: list[tuple[str, str, list[str]]] = [
        ("x86_64-linux-gnu", name, []) for name in sorted(x86)
    ]
    questions += [("aarch64-linux-gnu", name, []) for name in sorted(set(ARM.values()))]
    questions += [("riscv64-linux-gnu", "generic-rv64", ["+m", "+a", "+f", "+d", "+c", "+v"])]
    answers, _ = llvm(questions)
    unknown = [
        question[1]
        for question, answer in zip(questions, answers, strict=True)
        if not answer["cpu"]
    ]
    assert unknown == []
    answers, warnings = llvm(
        [
            ("x86_64-linux-gnu", "x86-64", [f"+{name}" for name in X86_FEATURES]),
            ("aarch64-linux-gnu", "generic", [f"+{name}" for name in ARM_FEATURES]),
        ]
    )
    assert "not a recognized feature" not in warnings
    assert set(X86_FEATURES) <= set(answers[0]["features"])
    assert set(ARM_FEATURES) <= set(answers[1]["features"])


@pytest.mark.environment
def test_what_a_phone_does_not_offer_is_switched_off() -> None:
    found = [read_profile(path) for path in FILES if path.stem.startswith("snapdragon")]
    answers, _ = llvm([(p.triple, p.cpu, list(p.features)) for p in found])
    for answer in answers:
        assert not {"sve", "sve2", "sme"} & set(answer["features"])
