"""Reading hardware profiles: every field is checked, every error names its field."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import UsageError
from deploykit.hardware_profile import Device, Figure, Price, Profile, Source
from deploykit.hardware_reading import LARGEST_BYTES, parse_profile, read_profile
from deploykit.hardware_writing import format_profile

WHOLE = """schema = 1
summary = "a board"
kind = "board"
triple = "aarch64-linux-gnu"
cpu = "cortex-a76"
features = ["+dotprod"]
flags = ["asimddp"]

[cores]
value = 4
sources = ["brief"]

[devices.cpu]
title = "4 Cortex-A76"
apis = ["cpu"]

[devices.cpu.peak_ops_per_s.fp32]
value = 153.6e9
sources = ["brief"]
formula = "4 cores * 2.4e9 Hz * 16 FLOP"
note = "no turbo"

[[prices]]
provider = "Cloud"
instance = "small"
region = "west"
usd_per_hour = 0.5
share = 0.25
sources = ["brief"]

[sources.brief]
title = "Brief"
publisher = "Maker"
date = "2024-02"
"""


def parsed(text: str) -> Profile:
    return parse_profile(text, name="board", where="`board.toml`")


def test_every_field_is_read() -> None:
    figure = Figure(value=4, sources=("brief",))
    assert parsed(WHOLE) == Profile(
        name="board",
        summary="a board",
        kind="board",
        triple="aarch64-linux-gnu",
        cpu="cortex-a76",
        features=("+dotprod",),
        flags=("asimddp",),
        cores=figure,
        devices={
            "cpu": Device(
                title="4 Cortex-A76",
                apis=("cpu",),
                peak_ops_per_s={
                    "fp32": Figure(
                        value=153.6e9,
                        sources=("brief",),
                        formula="4 cores * 2.4e9 Hz * 16 FLOP",
                        note="no turbo",
                    )
                },
            )
        },
        prices=(
            Price(
                provider="Cloud",
                instance="small",
                region="west",
                usd_per_hour=0.5,
                share=0.25,
                sources=("brief",),
            ),
        ),
        sources={"brief": Source(title="Brief", publisher="Maker", date="2024-02")},
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("schema = 1", "", "`schema` is missing"),
        ("schema = 1", "schema = 2", "`schema` this version of deploykit reads schema 1"),
        ("schema = 1", "schema = true", "`schema` is True: a number is needed"),
        ('summary = "a board"', "", "`summary` is missing"),
        ('summary = "a board"', 'summary = "a\\nboard"', "`summary` is not one line"),
        ('summary = "a board"', 'summary = " "', "`summary` is ' ': a text is needed"),
        ('kind = "board"', 'kind = "bord"', "`kind` is `bord` (did you mean `board`?)"),
        ('"aarch64-linux-gnu"', '"arm"', "`triple` is 'arm': an LLVM triple"),
        ('"aarch64-linux-gnu"', '"vax-dec-ultrix"', "`triple` is 'vax-dec-ultrix'"),
        ('cpu = "cortex-a76"', 'cpu = "-mcpu=x"', "`cpu` is '-mcpu=x'"),
        ('cpu = "cortex-a76"', "cpu = 76", "`cpu` is 76: a text is needed"),
        ('cpu = "cortex-a76"', 'cpus = "x"', "`cpus` is no field of a profile (did you mean `cpu`"),
        ('["+dotprod"]', '["dotprod"]', "`features` has 'dotprod': LLVM's features"),
        ('["+dotprod"]', '["+dotprod", "+dotprod"]', "`features` has `+dotprod` twice"),
        ('["+dotprod"]', '"+dotprod"', "`features` is no list of texts"),
        ('["asimddp"]', '["a b"]', "`flags` has 'a b'"),
        ("[cores]\nvalue = 4", "[cores]\nvalue = 4.5", "[cores]: `value` is 4.5: a whole number"),
        ("[cores]\nvalue = 4", "[cores]\nvalue = 0", "[cores]: `value` is 0: a number above zero"),
        ("[cores]\nvalue = 4", "[cores]\nvalue = nan", "[cores]: `value` is nan"),
        ("[cores]\nvalue = 4", "[cores]\nvalue = inf", "[cores]: `value` is inf"),
        ("[cores]\nvalue = 4", '[cores]\nvalue = "4"', "[cores]: `value` is '4': a number"),
        ("[cores]\nvalue = 4", "[cores]", "[cores]: `value` is missing"),
        ("[cores]\nvalue = 4\n", "[cores]\nvalue = 4\nunit = 1\n", "[cores]: `unit` is no field"),
        (
            'value = 4\nsources = ["brief"]',
            "value = 4",
            "[cores]: `sources` is missing: every figure needs a source",
        ),
        (
            'value = 4\nsources = ["brief"]',
            'value = 4\nsources = ["brif"]',
            "[cores]: `sources` names `brif`, which [sources] does not have (did you mean `brief`?)",
        ),
        ("[devices.cpu]\n", "[devices.tpu]\n", "[devices]: `tpu` is unknown"),
        ('apis = ["cpu"]', 'apis = ["cudnn"]', "[devices.cpu]: `apis` has `cudnn`"),
        ('apis = ["cpu"]', "", "[devices.cpu]: `apis` is missing"),
        (
            "peak_ops_per_s.fp32",
            "peak_ops_per_s.fp31",
            "[devices.cpu.peak_ops_per_s]: `fp31` is no field of a profile (did you mean `fp32`?)",
        ),
        (
            "* 16 FLOP",
            "* 8 FLOP",
            "[devices.cpu.peak_ops_per_s.fp32]: `formula` comes to 7.68e+10, not to 1.536e+11",
        ),
        ("* 16 FLOP", "/ 16", "[devices.cpu.peak_ops_per_s.fp32]: `formula` cannot be computed"),
        ("share = 0.25", "share = 0", "[prices[0]]: `share` is 0"),
        ("share = 0.25\n", "", "[prices[0]]: `share` is missing"),
        ("[[prices]]", "[prices]", "`prices` is no list of tables: write [[prices]]"),
        ('date = "2024-02"', "", "[sources.brief]: `date` is missing, and so is `document`"),
        ('date = "2024-02"', 'date = "2024-13"', "[sources.brief]: `date` is '2024-13'"),
        ('date = "2024-02"', 'date = "2024"\nurl = "http://x"', "`url` does not begin with https"),
        ('publisher = "Maker"\n', "", "[sources.brief]: `publisher` is missing"),
        ("[sources.brief]", "[sources]\nbrief = 1\n[x]", "[sources]: `brief` is no table"),
        ("[sources.brief]", '[sources."A b"]', "`sources.A b` is not of [a-z0-9._-]"),
        ("summary", "summary summary", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, told: str) -> None:
    assert WHOLE.count(old) >= 1
    with pytest.raises(UsageError) as error:
        parsed(WHOLE.replace(old, new, 1))
    assert error.value.message.startswith("`board.toml`")
    assert told in error.value.message


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    with pytest.raises(UsageError, match="cannot read the hardware profile"):
        read_profile(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_profile(path)
    path.write_bytes(b"#" * (LARGEST_BYTES + 1))
    with pytest.raises(UsageError, match="is longer than"):
        read_profile(path)
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(UsageError, match="is not TOML"):
        read_profile(path)
    named = tmp_path / "My Board.toml"
    named.write_text(WHOLE)
    with pytest.raises(UsageError, match="is called like its file"):
        read_profile(named)


@settings(deadline=None)
@given(
    st.recursive(
        st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["value", "sources", "title", "apis", "cpu", "fp32", "brief", "x"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
    st.sampled_from(
        [
            *(("cores",), ("devices",), ("devices", "cpu"), ("prices",), ("sources",)),
            *(("devices", "cpu", "peak_ops_per_s"), ("sources", "brief"), ("schema",)),
            *(("features",), ("triple",)),
        ]
    ),
)
def test_any_value_in_any_place_is_read_or_refused(value: object, place: tuple[str, ...]) -> None:
    data: Any = tomllib.loads(WHOLE)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda _text: data)
        try:
            profile = parsed("")
        except UsageError:
            return
    assert parsed(format_profile(profile)) == profile
