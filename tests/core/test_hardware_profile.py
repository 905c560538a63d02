"""What is computed from the figures of a profile."""

from __future__ import annotations

import pytest

from deploykit.hardware_profile import Device, Figure, Price, Profile, product_of


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("4", 4),
        ("4 cores * 2.4e9 Hz * 16 FLOP", 153.6e9),
        ("4 cores * 2e9 Hz * 16 FLOP + 4 cores * 1.5e9 Hz * 8 FLOP", 176e9),
        ("8 channels * 4800e6 transfers/s * 8 bytes", 307.2e9),
        ("485e12 OP * 0.5 dense", 242.5e12),
    ],
)
def test_a_formula_is_computed(formula: str, value: float) -> None:
    assert product_of(formula) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "four cores",
        "4 *",
        "4 ** 2",
        "4 / 2",
        "(4)",
        "-4",
        "4 cores 2",
        "__import__('os')",
        "4 + ",
    ],
)
def test_anything_else_is_no_formula(formula: str) -> None:
    with pytest.raises(ValueError, match="is no number with its unit"):
        product_of(formula)


def test_the_roofline_of_a_device() -> None:
    figure = Figure(value=100e9, sources=("s",))
    device = Device(
        title="D",
        apis=("cpu",),
        bandwidth_bytes_per_s=figure,
        peak_ops_per_s={"fp32": Figure(value=1e12, sources=("s",))},
    )
    assert device.ops_per_byte("fp32") == 10
    assert device.ops_per_byte("int8") is None
    assert device.values_per_s("fp32") == 25e9
    assert device.values_per_s("int4") == 200e9
    assert Device(title="D", apis=("cpu",)).values_per_s("fp32") is None


def test_the_price_is_of_all_of_the_hardware() -> None:
    def price(usd: float, share: float) -> Price:
        return Price(
            provider="P",
            instance="I",
            region="R",
            usd_per_hour=usd,
            share=share,
            sources=("s",),
        )

    plain = Profile(name="n", summary="s", kind="gpu", triple="x86_64-linux-gnu")
    assert plain.usd_per_hour is None
    assert plain.gpu == ""
    priced = Profile(
        name="n",
        summary="s",
        kind="gpu",
        triple="x86_64-linux-gnu",
        prices=(price(80, 8), price(1.5, 0.25)),
    )
    assert priced.usd_per_hour == 6  # a quarter for 1.50, which is less than 80 for eight
