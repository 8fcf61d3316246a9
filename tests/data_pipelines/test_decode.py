"""Decoding against Pillow, every odd kind of image, and files made to hurt."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_pipelines.decode import (
    DecodeError,
    decode,
    decode_into,
    decode_pixels,
    decode_upright,
    probe,
)
from tests.data_pipelines.samples import Pixels, encode, photo, psnr


def to_array(image: torch.Tensor) -> Pixels:
    return image.permute(1, 2, 0).numpy()


def by_pillow(data: bytes, size: int) -> Pixels:
    """Full decode, centre square, Pillow's antialiased bicubic."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def save(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def textured(height: int, width: int) -> Pixels:
    noise = np.random.default_rng(1).normal(0, 6, (height, width, 3))
    return np.clip(photo(height, width) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize(("height", "width"), [(96, 96), (90, 130), (130, 64), (20, 32), (64, 64)])
def test_equals_pillow_within_two_levels(form: str, height: int, width: int) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(photo(height, width), form, **options)
    image = decode(data, 64)
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    difference = to_array(image).astype(int) - by_pillow(data, 64).astype(int)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"])
@pytest.mark.parametrize("size", [32, 60, 100, 256, 300])
def test_scaled_jpeg_is_close_to_full_decoding(sampling: str, size: int) -> None:
    data = simplejpeg.encode_jpeg(
        textured(256, 320), quality=92, colorsubsampling=sampling.replace(":", "")
    )
    assert psnr(to_array(decode(data, size)), by_pillow(data, size)) > 34


def test_progressive_jpeg() -> None:
    data = encode(textured(256, 320), "JPEG", quality=92, progressive=True)
    assert psnr(to_array(decode(data, 60)), by_pillow(data, 60)) > 40


def test_jpeg_is_decoded_at_a_reduced_scale() -> None:
    data = encode(photo(512, 800), "JPEG")
    pixels, _ = decode_pixels(data, covering=(100, 100))
    assert pixels.shape == (128, 200, 3)  # 2/8: the next, 1/8, would leave 64 rows
    assert decode_pixels(data, covering=None)[0].shape == (512, 800, 3)
    assert decode_pixels(data, covering=(600, 600))[0].shape == (512, 800, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", [(0.5, 0.5), (0.0, 1.0), (1.0, 0.25)])
def test_orientation(orientation: int, crop: tuple[float, float]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(photo(40, 72))
    turned = save(stored, "PNG", exif=exif)
    upright_image = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    upright = save(upright_image, "PNG")
    # Turning and scaling commute but for rounding.
    difference = decode(turned, 24, crop=crop).int() - decode(upright, 24, crop=crop).int()
    assert difference.abs().max() <= 1
    assert probe(turned)[:2] == upright_image.size

    jpeg = save(stored, "JPEG", exif=exif, quality=100, subsampling=0)
    assert psnr(to_array(decode(jpeg, 24, crop=crop)), to_array(decode(turned, 24, crop=crop))) > 35
    assert probe(jpeg) == (*upright_image.size, "jpg")
    whole = decode_upright(jpeg, 1000)
    assert tuple(whole.shape[1:]) == upright_image.size[::-1]
    assert psnr(to_array(whole), np.asarray(upright_image)) > 35


def by_pillow_shaped(data: bytes, height: int, width: int, crop: tuple[float, float]) -> Pixels:
    """Full decode, then the largest part of the shape, resampled by Pillow."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    scale = min(image.height / height, image.width / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = round((image.height - rows) * crop[1]), round((image.width - columns) * crop[0])
    part = image.crop((left, top, left + columns, top + rows))
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64), (16, 96), (200, 300)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("crop", [(0.5, 0.5), (0.0, 1.0)])
def test_any_shape(shape: tuple[int, int], orientation: int, crop: tuple[float, float]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(photo(160, 240))
    png = save(stored, "PNG", exif=exif)
    image = decode(png, shape, crop=crop)
    assert image.shape == (3, *shape)
    assert image.is_contiguous()
    expected = by_pillow_shaped(png, *shape, crop)
    assert np.abs(to_array(image).astype(int) - expected.astype(int)).max() <= 2
    jpeg = save(stored, "JPEG", exif=exif, quality=95, subsampling=0)
    assert psnr(to_array(decode(jpeg, shape, crop=crop)), expected) > 34


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("source", [(64, 48), (160, 240), (48, 64)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_into_memory_of_any_layout(form: str, source: tuple[int, int], orientation: int) -> None:
    """One of the sizes is the result's own, which JPEG is decoded straight into."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(Image.fromarray(photo(*source)), form, exif=exif)
    expected = decode(data, (64, 48), crop=(0.3, 0.8))
    channels_last = torch.zeros((2, 64, 48, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for out in (channels_last[1], torch.zeros((3, 64, 48), dtype=torch.uint8)):
        decode_into(data, out, crop=(0.3, 0.8))
        assert out.equal(expected)
    assert not channels_last[0].any()
    if form == "JPEG":
        with pytest.raises(DecodeError):
            decode_into(data[: len(data) // 2], channels_last[0])


def test_reduced_scale_covers_both_sides() -> None:
    """1/8 of 512 x 800 is 64 x 100: enough rows for 60 x 110, but too few columns."""
    data = encode(photo(512, 800), "JPEG")
    assert decode_pixels(data, covering=(60, 100))[0].shape == (64, 100, 3)
    assert decode_pixels(data, covering=(60, 110))[0].shape == (128, 200, 3)


def test_crop_position() -> None:
    ramp = np.repeat(np.arange(0, 250, dtype=np.uint8)[None, :, None], 50, axis=0)
    wide = encode(np.repeat(ramp, 3, axis=2))
    tall = encode(np.repeat(ramp, 3, axis=2).transpose(1, 0, 2))
    for position, first in [(0.0, 0), (0.25, 50), (0.5, 100), (1.0, 200)]:
        assert decode(wide, 50, crop=(position, 0.9))[0, 0].tolist() == list(
            range(first, first + 50)
        )
        column = decode(tall, 50, crop=(0.9, position))[0, :, 0]
        assert column.tolist() == list(range(first, first + 50))


def test_upright_keeps_aspect_and_never_enlarges() -> None:
    assert decode_upright(encode(photo(100, 300)), 50).shape == (3, 50, 150)
    assert decode_upright(encode(photo(300, 101)), 50).shape == (3, 149, 50)
    assert torch.equal(
        decode_upright(encode(photo(30, 40)), 50),
        torch.from_numpy(photo(30, 40)).permute(2, 0, 1),
    )


def flat(image: Image.Image, form: str = "PNG", **options: object) -> list[int]:
    """Decodes an image of one colour and returns it."""
    pixels = decode(save(image, form, **options), 8)
    return [int(value) for value in pixels.float().mean(dim=(1, 2)).round()]


def test_modes() -> None:
    size = (9, 11)
    assert flat(Image.new("L", size, 100)) == [100] * 3
    assert flat(Image.new("L", size, 100), "JPEG") == [100] * 3
    assert flat(Image.new("1", size, 1)) == [255] * 3
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert flat(palette) == [10, 200, 30]
    assert flat(palette, "PNG", transparency=1) == [255] * 3
    assert flat(Image.new("RGBA", size, (200, 0, 0, 0))) == [255] * 3
    assert flat(Image.new("RGBA", size, (200, 0, 0, 51))) == [244, 204, 204]  # one fifth red
    assert flat(Image.new("LA", size, (0, 204))) == [51] * 3
    assert flat(Image.new("RGBA", size, (0, 0, 255, 0)), "WEBP", lossless=True) == [255] * 3


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form: str) -> None:
    red = flat(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), form)
    assert np.abs(np.array(red) - [255, 0, 0]).max() <= 4
    dark = flat(Image.new("CMYK", (16, 16), (0, 0, 0, 155)), form)
    assert np.abs(np.array(dark) - 100).max() <= 4


@pytest.mark.parametrize("transform", [0, 2])  # CMYK, YCCK
def test_adobe_cmyk_jpeg_equals_pillow(transform: int) -> None:
    inks = np.concatenate([photo(64, 64, 1), photo(64, 64, 2)[..., :1] // 2], axis=2)
    data = bytearray(save(Image.fromarray(inks, "CMYK"), "JPEG", quality=95))
    data[data.index(b"\xff\xee\x00\x0eAdobe") + 15] = transform
    difference = to_array(decode(bytes(data), 64)).astype(int) - by_pillow(bytes(data), 64)
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(form: str) -> None:
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = decode(save(Image.fromarray(levels), form), 64)
    expected = np.round(levels.astype(np.float64) / 65535 * 255)
    for channel in image:
        assert np.abs(channel.numpy() - expected).max() <= 0.5 + 1e-9


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG with any size in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG with any size in its header."""
    data = bytearray(encode(photo(16, 16), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("data", [png(50_000, 50_000), jpeg_of_size(50_000, 50_000)])
def test_bombs_are_refused_from_the_header(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r"50000 x 50000 pixels; the limit|2500000000 pixels"):
        decode(data, 64)
    with pytest.raises(DecodeError):
        probe(data)


def test_pixel_limit_is_the_callers() -> None:
    for form in ("PNG", "JPEG"):
        data = encode(photo(20, 30), form)
        assert decode(data, 8, max_pixels=600).shape == (3, 8, 8)
        with pytest.raises(DecodeError, match="30 x 20 pixels; the limit is 599"):
            decode(data, 8, max_pixels=599)


def test_extreme_aspect_ratio_needs_little_memory() -> None:
    # Scaled whole, this would be a 64 x 3,840,000 picture.
    assert decode(encode(np.zeros((1, 60_000, 3), np.uint8)), 64).shape == (3, 64, 64)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"this is a text file\n" * 20,
        b"\xff\xd8\xff",
        encode(photo(64, 64), "JPEG")[:600],
        encode(photo(64, 64), "PNG")[:600],
        encode(photo(64, 64), "WEBP")[:200],
        png(0, 5),
        png(8, 8, b"too short"),
        save(Image.new("F", (8, 8), 0.5), "TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    ],
)
def test_unusable_files(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, 32)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on what it finds odd
@settings(deadline=None, max_examples=150)
@given(form=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]), data=st.data())
def test_damage_gives_an_image_or_a_decode_error(form: str, data: st.DataObject) -> None:
    original = bytearray(encode(photo(24, 24), form))
    places = st.integers(0, len(original) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        original[place] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(original), 16, max_pixels=10**6)
    except DecodeError:
        return
    assert image.shape == (3, 16, 16)
