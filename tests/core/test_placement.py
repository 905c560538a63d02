"""Where operations ran, as shares per device."""

from __future__ import annotations

import pytest

from deploykit.errors import UnsupportedError
from deploykit.placement import DeviceShare, check, described, elsewhere, shares
from deploykit.protocol import OperatorRun, from_json, to_json


def run(device: str, operator: str, time_us: float | None = 1.0, nodes: int = 0) -> OperatorRun:
    names = tuple(f"n{number}" for number in range(nodes))
    return OperatorRun(name="x", operator=operator, device=device, time_us=time_us, nodes=names)


def test_strict_names_the_operators() -> None:
    found = shares([run("cuda", "Conv", nodes=7), run("cpu", "NonZero"), run("cpu", "Resize")])
    with pytest.raises(UnsupportedError, match=r"ort:cuda: 2 of 9 nodes, 67 %") as raised:
        check("cuda", found, what="ort:cuda")
    assert raised.value.operators == ("NonZero", "Resize")
    check("cpu", shares([run("cpu", "Conv")]), what="ort:cpu")


def test_nothing_ran() -> None:
    assert shares([]) == {}
    assert described("cuda", {}) == ""
    check("cuda", {}, what="an empty model")


def test_times_that_are_not_told_are_not_made_up() -> None:
    found = shares([run("cuda", "Conv", 5.0), run("cpu", "Resize", None)])
    assert [share.time_share for share in found.values()] == [None, None]
    assert described("cuda", found) == "1 of 2 nodes ran on cpu: Resize"
    assert shares([run("cpu", "Identity", 0.0)])["cpu"].time_share is None


def test_many_operators_are_cut_short() -> None:
    found = shares([run("cpu", f"Op{number}") for number in range(9)])
    assert described("cuda", found).endswith("Op0, Op1, Op2, Op3, Op4, Op5 and 3 more")


@pytest.mark.parametrize(
    ("asked", "away"),
    [
        ("gpu", {"cpu", "npu"}),
        ("hetero:gpu,cpu", {"npu"}),
        ("auto", set()),
        ("auto:gpu", set()),
        ("tpu", {"cpu", "gpu", "npu"}),
    ],
)
def test_a_device_may_be_several(asked: str, away: set[str]) -> None:
    found = shares([run(device, "Conv") for device in ("cpu", "gpu", "npu")])
    assert set(elsewhere(asked, found)) == away


def test_shares_survive_json() -> None:
    found = shares([run("cuda", "Conv", 3.0), run("cpu", "Resize", 1.0)])
    assert from_json(dict[str, DeviceShare], to_json(found)) == found
