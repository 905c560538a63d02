"""Writing hardware profiles: what is written reads back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import OutputError
from deploykit.hardware_profile import (
    APIS,
    BYTES_OF,
    DEVICES,
    KINDS,
    Device,
    Figure,
    Price,
    Profile,
    Source,
)
from deploykit.hardware_reading import parse_profile, read_profile
from deploykit.hardware_writing import format_profile, write_profile


def test_writing_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    profile = Profile(name="board", summary="a board", kind="board", triple="aarch64-linux-gnu")
    write_profile(profile, path)
    assert read_profile(path) == profile
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_profile(profile, path)
    assert path.read_text() == "mine"
    with pytest.raises(OutputError, match="cannot write the hardware profile"):
        write_profile(profile, tmp_path / "absent" / "board.toml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["board.toml"]


KEYS = st.text(st.sampled_from("ab0._-"), min_size=1, max_size=5).map(lambda tail: f"k{tail}")
# quotes, signs of TOML, letters beyond ASCII, one beyond the first plane
WORDS = st.text(st.sampled_from("aZ0\"\\'#=[]{},.%é語𝔘"), min_size=1, max_size=6)
LINES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
NOTES = st.just("") | LINES
NUMBERS = st.integers(1, 10**25) | st.floats(1e-9, 1e25)


def cited(sources: dict[str, Source]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(sorted(sources)), min_size=1, unique=True).map(tuple)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Any profile that the schema allows."""
    source = st.builds(
        Source,
        title=LINES,
        publisher=LINES,
        date=st.sampled_from(["2024", "2024-02", "2024-02-29"]),
        document=NOTES,
        url=st.sampled_from(["", "https://example.org/a?b=c#d"]),
    )
    sources = draw(st.dictionaries(KEYS, source, min_size=1, max_size=2))
    citing = cited(sources)
    number = st.builds(Figure, value=NUMBERS, sources=citing, note=NOTES, formula=st.just(""))
    whole = st.builds(Figure, value=st.integers(1, 10**15), sources=citing)
    device = st.builds(
        Device,
        title=LINES,
        apis=st.lists(st.sampled_from(APIS), min_size=1, max_size=2, unique=True).map(tuple),
        architecture=st.sampled_from(["", "sm_87", "gfx90a"]),
        memory_bytes=st.none() | whole,
        bandwidth_bytes_per_s=st.none() | number,
        peak_ops_per_s=st.dictionaries(st.sampled_from(sorted(BYTES_OF)), number, max_size=2),
    )
    price = st.builds(
        Price,
        provider=LINES,
        instance=LINES,
        region=LINES,
        usd_per_hour=NUMBERS,
        share=NUMBERS,
        sources=citing,
        note=NOTES,
    )
    names = st.lists(KEYS, unique=True, max_size=30)
    return Profile(
        name=draw(KEYS),
        summary=draw(LINES),
        kind=draw(st.sampled_from(KINDS)),
        triple=draw(st.sampled_from(["aarch64-linux-gnu", "wasm32-unknown-unknown"])),
        cpu=draw(st.sampled_from(["", "x86-64-v3", "cortex-a76"])),
        features=tuple(f"+{name}" for name in draw(names)),
        flags=tuple(draw(names)),
        cores=draw(st.none() | whole),
        threads=draw(st.none() | whole),
        memory_bytes=draw(st.none() | whole),
        power_w=draw(st.none() | number),
        devices=draw(st.dictionaries(st.sampled_from(DEVICES), device, max_size=2)),
        prices=tuple(draw(st.lists(price, max_size=1))),
        sources=sources,
    )


@settings(max_examples=50, deadline=None)
@given(profiles())
def test_what_is_written_reads_back(profile: Profile) -> None:
    text = format_profile(profile)
    assert parse_profile(text, name=profile.name, where="it") == profile
    assert format_profile(parse_profile(text, name=profile.name, where="it")) == text
