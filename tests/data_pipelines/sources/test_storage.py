"""What is stored of an image, and which images are wanted."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.decode import DecodeError
from data_pipelines.sources.storage import Filters, Storage, Stored
from tests.data_pipelines.samples import encode, photo, psnr

SCALED = (40, 60)  # height and width of what is 80 x 120, at a short side of 40
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def pixels(stored: Stored) -> np.ndarray:
    image = Image.open(io.BytesIO(stored.data))
    assert image.format == FORMATS[stored.extension]
    return np.asarray(image.convert("RGB"))


def reference(source: np.ndarray) -> np.ndarray:
    """The same picture at SCALED, by another library."""
    return np.asarray(Image.fromarray(source).resize(SCALED[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [None, 80, 81])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_bytes_are_kept_where_nothing_has_to_change(form: str, size: int | None) -> None:
    data = encode(photo(80, 120), form)
    extension = {"JPEG": "jpg"}.get(form, form.lower())
    assert Storage(size).store(data) == (data, extension, 120, 80)


@pytest.mark.parametrize(
    ("form", "extension", "least"),
    [("JPEG", "jpg", 36), ("PNG", "png", 45), ("WEBP", "png", 28), ("BMP", "png", 45)],
)
def test_scaling_down(form: str, extension: str, least: float) -> None:
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    stored = Storage(40).store(encode(photo(80, 120), form, **options))
    assert stored[1:] == (extension, 60, 40)
    assert psnr(pixels(stored), reference(photo(80, 120))) > least


def test_png_stays_lossless() -> None:
    stored = Storage(40).store(encode(photo(80, 120)))
    again = Storage(40, format="png").store(encode(photo(80, 120)))
    assert stored == again
    # Stored once more at its size, nothing is lost: not one grey level.
    assert np.array_equal(pixels(Storage(40).store(stored.data)), pixels(stored))


@pytest.mark.parametrize("asked", ["jpg", "webp", "png"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("size", [None, 40])
def test_a_format_that_is_asked_for(form: str, asked: str, size: int | None) -> None:
    data = encode(photo(80, 120), form)
    stored = Storage(size, format=asked).store(data)
    assert stored.extension == asked
    assert pixels(stored).shape[:2] == (stored.height, stored.width)
    assert (stored.height, stored.width) == ((80, 120) if size is None else SCALED)
    assert (stored.data == data) == (size is None and FORMATS[asked] == form)


@pytest.mark.parametrize("asked", ["jpg", "webp"])
def test_quality_is_honoured(asked: str) -> None:
    source = photo(80, 120)
    results = [Storage(40, asked, quality).store(encode(source)) for quality in (20, 60, 95)]
    lengths = [len(stored.data) for stored in results]
    errors = [psnr(pixels(stored), reference(source)) for stored in results]
    assert lengths == sorted(lengths)
    assert errors == sorted(errors)
    assert len(set(lengths)) == len(set(errors)) == 3


def test_colours_of_jpeg_are_kept_at_full_resolution() -> None:
    stored = Storage(40).store(encode(photo(80, 120), "JPEG", quality=95))
    frame = stored.data.index(b"\xff\xc0")  # SOF0: ..., components, (id, sampling, table) each
    assert [stored.data[frame + 11 + 3 * number] for number in range(3)] == [0x11] * 3


def test_rotated_images_are_stored_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo(80, 120), "JPEG", quality=98, subsampling=0, exif=exif)
    kept = Storage().store(data)
    assert kept == (data, "jpg", 80, 120)  # upright size; the tag stays with the bytes
    stored = Storage(40).store(data)
    assert stored[1:] == ("jpg", 40, 60)
    assert not Image.open(io.BytesIO(stored.data)).getexif()
    turned = np.rot90(reference(photo(80, 120)), -1)
    assert psnr(pixels(stored), turned) > 33


@pytest.mark.parametrize("size", [None, 10])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_what_does_not_decode_is_never_stored(form: str, size: int | None) -> None:
    whole = encode(photo(80, 120), form)
    for data in (whole[: len(whole) // 2], b"", b"text"):
        with pytest.raises(DecodeError):
            Storage(size).store(data)


def test_too_large_for_webp() -> None:
    wide = encode(np.zeros((1, 16384, 3), dtype=np.uint8))
    with pytest.raises(DecodeError, match="cannot be encoded as webp"):
        Storage(format="webp").store(wide)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0; it must be at least 1"),
        ({"format": "gif"}, "format is 'gif'; choose one of same, jpg, webp, png"),
        ({"quality": 0}, "quality is 0"),
        ({"quality": 101}, "quality is 101"),
        ({"quality": 90}, "images that keep their bytes have none to choose"),
        ({"quality": 90, "format": "png"}, "PNG is lossless and has none to choose"),
    ],
)
def test_bad_storage(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Storage(**options)  # type: ignore[arg-type]


def test_recipes_tell_policies_apart() -> None:
    default = Storage(64).recipe()  # pinned: another value would refuse sets that are there
    assert default == {"size": 64, "scaling": "bicubic, antialiased; JPEG quality 95, 4:4:4"}
    policies = [Storage(), Storage(64), Storage(64, "jpg"), Storage(64, "webp"), Storage(64, "png")]
    policies += [Storage(64, "same", 90), Storage(64, "jpg", 90), Storage(64, "webp", 90)]
    recipes = [policy.recipe() for policy in policies]
    assert all(a != b for i, a in enumerate(recipes) for b in recipes[:i])
    assert Filters().recipe() == {}
    assert Filters(min_side=3, max_aspect=2.5).recipe() == {"min_side": 3, "max_aspect": 2.5}


@pytest.mark.parametrize(
    ("filters", "size", "reason"),
    [
        (Filters(), (1, 1), None),
        (Filters(min_side=30), (30, 30), None),
        (Filters(min_side=30), (40, 29), "too small: 40 x 29"),
        (Filters(max_side=40), (40, 29), None),
        (Filters(max_side=39), (29, 40), "too large: 29 x 40"),
        (Filters(min_aspect=1.5), (3, 2), None),
        (Filters(min_aspect=1.5), (299, 200), "too tall: 299 x 200"),
        (Filters(max_aspect=1.5), (3, 2), None),
        (Filters(max_aspect=1.5), (301, 200), "too wide: 301 x 200"),
        (Filters(max_aspect=1 / 3), (100, 300), None),
    ],
)
def test_sizes_that_are_wanted(filters: Filters, size: tuple[int, int], reason: str | None) -> None:
    assert filters.refuse_size(*size) == reason


@pytest.mark.parametrize(
    ("filters", "caption", "reason"),
    [
        (Filters(), None, None),
        (Filters(min_caption=1), None, "caption too short: 0 characters"),
        (Filters(min_caption=3), "äöü", None),
        (Filters(min_caption=4), "äöü", "caption too short: 3 characters"),
        (Filters(max_caption=3), "äöü", None),
        (Filters(max_caption=2), "äöü", "caption too long: 3 characters"),
        (Filters(max_caption=0), None, None),
    ],
)
def test_captions_that_are_wanted(
    filters: Filters, caption: str | None, reason: str | None
) -> None:
    assert filters.refuse_caption(caption) == reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_side": 0}, "min_side is 0"),
        ({"max_aspect": 0.0}, "max_aspect is 0.0"),
        ({"min_aspect": float("nan")}, "min_aspect is nan"),
        ({"min_caption": -1}, "min_caption is -1"),
        ({"min_side": 5, "max_side": 4}, "min_side is 5 and max_side is 4; no image"),
        ({"min_aspect": 2.0, "max_aspect": 1.0}, "no image could pass both"),
    ],
)
def test_bad_filters(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filters(**options)  # type: ignore[arg-type]
