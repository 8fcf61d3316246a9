"""The orientation tag, against Pillow's writer and hostile bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.exif import jpeg_orientation
from tests.data_pipelines.samples import encode, photo


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    return encode(photo(8, 16), "JPEG", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reads_what_pillow_writes(orientation: int) -> None:
    assert jpeg_orientation(oriented(orientation)) == orientation


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_undefined_values_mean_upright(orientation: int) -> None:
    assert jpeg_orientation(oriented(orientation)) == 1


def test_without_exif() -> None:
    assert jpeg_orientation(encode(photo(8, 16), "JPEG")) == 1


def test_big_endian_and_later_segments() -> None:
    tiff = b"MM\0*\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    app1 = b"Exif\0\0" + tiff
    comment = b"\xff\xfe\0\x06abcd"
    data = b"\xff\xd8" + comment + b"\xff\xe1" + (len(app1) + 2).to_bytes(2, "big") + app1
    assert jpeg_orientation(data) == 6


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_never_raises(data: st.DataObject) -> None:
    original = bytearray(oriented(6)[:120])
    for place in data.draw(st.lists(st.integers(0, 119), max_size=6)):
        original[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 120))
    assert 1 <= jpeg_orientation(bytes(original[:cut])) <= 8
