"""Images as inputs, against pixels that were put there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import UsageError
from deploykit.events import Event
from deploykit.feeds import read_feed
from deploykit.tensor_spec import parse_input

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 6 x 4 pixels, its left half red, its right half blue."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3, 0] = 255
    pixels[:, 3:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("x:float32[1,3,4,6]", (1, 3, 4, 6)),
        ("x:float32[N,3,?,?]", (1, 3, 4, 6)),
        ("x:float16[3,H,W]", (3, 4, 6)),
        ("x:float32[1,8,12,3]", (1, 8, 12, 3)),
        ("x:uint8[H,W,4]", (4, 6, 4)),
        ("x:uint8[1,1,28,28]", (1, 1, 28, 28)),
        ("x:float32[28,28]", (28, 28)),
    ],
)
def test_fits_the_input(picture: Path, spec: str, shape: tuple[int, ...]) -> None:
    notes: list[Event] = []
    (value,) = read_feed(picture, (parse_input(spec),), listen=notes.append).values()
    assert value.shape == shape
    assert value.max() <= (255 if value.dtype == np.uint8 else 1)
    assert "6x4" in notes[0].message
    assert ("resized" in notes[0].message) == (
        shape[-2:] not in ((4, 6), (6, 4)) and 6 not in shape
    )


def test_channels_and_scale(picture: Path) -> None:
    (chw,) = read_feed(picture, (parse_input("x:float32[1,3,4,6]"),)).values()
    (hwc,) = read_feed(picture, (parse_input("x:uint8[1,4,6,3]"),)).values()
    assert chw[0, :, 2, 0].tolist() == [1, 0, 0]
    assert hwc[0, 2, 5].tolist() == [0, 0, 255]
    assert np.array_equal(chw[0].transpose(1, 2, 0) * 255, hwc[0])


def test_turned_by_exif(tmp_path: Path, picture: Path) -> None:
    with Image.open(picture) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # turn by 90 degrees clockwise
        image.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    (value,) = read_feed(tmp_path / "turned.jpg", (parse_input("x:uint8[H,W,3]"),)).values()
    assert value.shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("x:float32[8,3,4,6]", "batch of 8"),
        ("x:int64[1,3,4,6]", "neither floats nor uint8"),
        ("x:float32[1,3,224,3]", "cannot tell where the channels"),
        ("x:float32[1,7,4,6]", "cannot tell where the channels"),
        ("x:float32[10]", "cannot tell where the channels"),
        ("x:float32", "cannot tell where the channels"),
    ],
)
def test_inputs_that_hold_no_image(picture: Path, spec: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_feed(picture, (parse_input(spec),))


def test_no_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    half = whole[: len(whole) // 2]
    for name, content in (("text.txt", b"hello"), ("empty.png", b""), ("cut.png", half)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=name):
            read_feed(tmp_path / name, (parse_input("x:uint8[H,W,3]"),))
