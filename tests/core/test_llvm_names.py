"""What processors are called in LLVM's words, from `/proc/cpuinfo` of many machines."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from deploykit.llvm_names import cpu_name, features, flags_of, in_the_kernels_words, triple


def x86(vendor: str, family: int, model: int, flags: str = "fpu") -> str:
    one = (
        f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {vendor} something\nflags\t\t: {flags}\n"
    )
    return "\n".join(f"processor\t: {i}\n{one}" for i in range(2))


def arm(*parts: tuple[str, str], flags: str = "fp asimd") -> str:
    return "\n".join(
        f"processor\t: {i}\nFeatures\t: {flags}\nCPU implementer\t: {implementer}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part}\n"
        for i, (implementer, part) in enumerate(parts)
    )


V3 = "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2 abm avx avx2 bmi1 bmi2 f16c fma movbe"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (x86("GenuineIntel", 6, 143), "sapphirerapids"),
        (x86("GenuineIntel", 6, 207), "emeraldrapids"),
        (x86("GenuineIntel", 6, 106), "icelake-server"),
        (x86("GenuineIntel", 6, 85), "skylake-avx512"),
        (x86("GenuineIntel", 6, 85, "avx512_vnni"), "cascadelake"),
        (x86("GenuineIntel", 6, 85, "avx512_vnni avx512_bf16"), "cooperlake"),
        (x86("GenuineIntel", 6, 158), "skylake"),
        (x86("AuthenticAMD", 23, 49), "znver2"),
        (x86("AuthenticAMD", 23, 1), "znver1"),
        (x86("AuthenticAMD", 25, 1), "znver3"),
        (x86("AuthenticAMD", 25, 17), "znver4"),
        (x86("AuthenticAMD", 26, 2), "znver5"),
        # one that nobody has met yet gets the level of its instructions
        (x86("GenuineIntel", 6, 250, V3), "x86-64-v3"),
        (x86("GenuineIntel", 6, 250, V3.replace("avx2 ", "")), "x86-64-v2"),
        (
            x86("AuthenticAMD", 40, 1, f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"),
            "x86-64-v4",
        ),
        (x86("CentaurHauls", 7, 27), "x86-64"),
        ("", "x86-64"),
    ],
)
def test_x86(text: str, name: str) -> None:
    assert cpu_name("x86_64", text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (arm(("0x41", "0xd08")), "cortex-a72"),
        (arm(("0x41", "0xd0b")), "cortex-a76"),
        (arm(("0x41", "0xd40")), "neoverse-v1"),
        (arm(("0xc0", "0xac3")), "ampere1"),
        # the fast cores of RK3588 come last in its cpuinfo, those of others first
        (arm(("0x41", "0xd05"), ("0x41", "0xd0b")), "cortex-a76"),
        (arm(("0x41", "0xd4e"), ("0x41", "0xd4d"), ("0x41", "0xd46")), "cortex-x3"),
        # one that is not known may lack what its neighbour has
        (arm(("0x41", "0xd0b"), ("0x41", "0xfff")), ""),
        (arm(("0x99", "0x001")), ""),
        ("", ""),
    ],
)
def test_arm(text: str, name: str) -> None:
    assert cpu_name("aarch64", text) == name


def test_what_a_hypervisor_hides_is_said_to_be_missing() -> None:
    found = features("x86_64", x86("GenuineIntel", 6, 143, f"{V3} avx512f avx512_bf16"))
    assert {"+avx2", "+avx512f", "+avx512bf16", "+lzcnt", "+sse3"} <= set(found)
    assert {"-amx-tile", "-amx-int8", "-amx-bf16"} <= set(found)
    assert len(found) == len({feature[1:] for feature in found})
    found = features("aarch64", arm(("0x41", "0xd08"), flags="fp asimd crc32"))
    assert {"+neon", "+crc", "-aes", "-sha2", "-dotprod"} <= set(found)


def test_only_what_all_cores_have_counts() -> None:
    text = "processor: 0\nFeatures: asimd sve\n\nprocessor: 1\nFeatures: asimd\n\nHardware: x\n"
    assert flags_of(text) == {"asimd"}
    assert flags_of("nothing") == frozenset()
    assert features("aarch64", "nothing") == ()  # unknown is not missing


def test_riscv() -> None:
    text = "processor: 0\nisa: rv64imafdcv_zicsr_zba_zbb\n\nprocessor: 1\nisa: rv64gc_zba\n"
    assert cpu_name("riscv64", text) == "generic-rv64"
    assert features("riscv64", text) == ("+m", "+a", "+f", "+d", "+c", "+zba")
    assert features("riscv64", "") == ()


@pytest.mark.parametrize(
    ("architecture", "bits", "musl", "expected"),
    [
        ("x86_64", 64, False, "x86_64-linux-gnu"),
        ("x86_64", 64, True, "x86_64-linux-musl"),
        ("x86_64", 32, False, "i686-linux-gnu"),
        ("aarch64", 64, False, "aarch64-linux-gnu"),
        ("aarch64", 32, False, "armv7l-linux-gnueabihf"),
        ("armv7l", 32, True, "armv7l-linux-musleabihf"),
        ("riscv64", 64, False, "riscv64-linux-gnu"),
    ],
)
def test_triples(architecture: str, bits: int, musl: bool, expected: str) -> None:
    assert triple(architecture, pointer_bits=bits, musl=musl) == expected


def test_this_machine_has_a_name() -> None:
    text = Path("/proc/cpuinfo").read_text()
    machine = platform.machine()
    assert triple(machine).startswith(machine)
    if machine == "x86_64":
        assert cpu_name(machine, text)
        assert f"+{'sse4.2'}" in features(machine, text)


def test_features_in_the_kernels_words() -> None:
    words = in_the_kernels_words
    names = ["avx512vnni", "sse4.1", "lzcnt", "fast-gather"]
    assert words(names, "x86_64") == ("abm", "avx512_vnni", "sse4_1")
    names = ["neon", "fullfp16", "dotprod", "a76"]
    assert words(names, "aarch64") == ("asimd", "asimddp", "asimdhp")
    assert words(["v", "zvl256b"], "riscv64") == ()
