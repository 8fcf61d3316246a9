"""What is stored of an image: its own bytes, or a smaller encoding; and which images are wanted."""

import io
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import simplejpeg
import torch
from PIL import Image

from data_pipelines.decode import DecodeError, decode_upright, probe

FORMATS = ("same", "jpg", "webp", "png")
_SAME = "same"
_QUALITY = 95


class Stored(NamedTuple):
    """An image as it is stored: encoded bytes, extension, upright width and height in pixels."""

    data: bytes
    extension: str
    width: int
    height: int


@dataclass(frozen=True)
class Storage:
    """How images are stored. Every image is decoded once, so that none is stored that cannot be.

    Images are only ever scaled down, aspect kept. Those that are encoded again lie upright, as
    8-bit RGB and without metadata; the others keep their bytes.

    Attributes:
        size: Short side in pixels that is enough: longer ones are scaled to it and encoded again.
            None keeps the resolution.
        format: Encoding of the stored images. "same" stays JPEG where it was, and makes lossless
            PNG of anything else that was scaled. "jpg", "webp" or "png": all images are of it;
            only small ones that are of it already keep their bytes.
        quality: Of JPEG (4:4:4) and WebP (lossy), 1 to 100.

    Raises:
        ValueError: An option is out of range.
    """

    size: int | None = None
    format: str = _SAME
    quality: int = _QUALITY

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1 pixel")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; choose one of {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be from 1 to 100")
        kept = self.format == _SAME and self.size is None
        if self.quality != _QUALITY and (kept or self.format == "png"):
            what = "images that keep their bytes have" if kept else "PNG is lossless and has"
            raise ValueError(f"quality is {self.quality}, but {what} none to choose; leave it out")

    def recipe(self) -> dict[str, Any]:
        """What decides the stored bytes: JSON values."""
        recipe: dict[str, Any] = {
            "size": self.size,
            "scaling": f"bicubic, antialiased; JPEG quality {self.quality}, 4:4:4",
        }
        if self.format != _SAME:  # sets built before there was a choice keep their recipe
            recipe |= {"format": self.format, "quality": self.quality}
        return recipe

    def store(self, data: bytes) -> Stored:
        """Converts one encoded image.

        Raises:
            DecodeError: It is not an image that may be used; the message says why.
        """
        width, height, extension = probe(data)
        short = min(width, height)
        enough = short if self.size is None else min(short, self.size)
        pixels = decode_upright(data, enough)
        kind = extension if self.format == _SAME else self.format
        if enough == short and kind == extension:
            return Stored(data, extension, width, height)
        if self.format == _SAME and kind != "jpg":
            kind = "png"
        height, width = pixels.shape[1:]
        return Stored(_encode(pixels, kind, self.quality), kind, width, height)


@dataclass(frozen=True)
class Filters:
    """Which images are wanted; the limits themselves are allowed.

    Attributes:
        min_side: Least short side in pixels, before any scaling.
        max_side: Greatest long side in pixels.
        min_aspect: Least width / height.
        max_aspect: Greatest width / height.
        min_caption: Least number of characters of the caption; no caption has 0.
        max_caption: Greatest number of characters of the caption.

    Raises:
        ValueError: Nothing could pass.
    """

    min_side: int | None = None
    max_side: int | None = None
    min_aspect: float | None = None
    max_aspect: float | None = None
    min_caption: int | None = None
    max_caption: int | None = None

    def __post_init__(self) -> None:
        for kind, least in (("side", 1), ("aspect", 1e-6), ("caption", 0)):
            low, high = getattr(self, f"min_{kind}"), getattr(self, f"max_{kind}")
            for name, value in ((f"min_{kind}", low), (f"max_{kind}", high)):
                if value is not None and not value >= least:
                    raise ValueError(f"{name} is {value}; it must be at least {least}")
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"min_{kind} is {low} and max_{kind} is {high}; no image could pass both"
                )

    @property
    def by_size(self) -> bool:
        """Whether an image's width and height matter."""
        limits = (self.min_side, self.max_side, self.min_aspect, self.max_aspect)
        return any(limit is not None for limit in limits)

    def recipe(self) -> dict[str, Any]:
        """The limits that are set: JSON values."""
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def refuse_size(self, width: int, height: int) -> str | None:
        """Why an image of this upright size is not wanted; None if it is."""
        size = f"{width} x {height}"
        if self.min_side is not None and min(width, height) < self.min_side:
            return f"too small: {size}"
        if self.max_side is not None and max(width, height) > self.max_side:
            return f"too large: {size}"
        # Products, not quotients: 3 x 2 against 1.5 must not hang on a rounding.
        if self.min_aspect is not None and width < self.min_aspect * height:
            return f"too tall: {size}"
        if self.max_aspect is not None and width > self.max_aspect * height:
            return f"too wide: {size}"
        return None

    def refuse_caption(self, caption: str | None) -> str | None:
        """Why an image with this caption is not wanted; None if it is."""
        length = len(caption or "")
        if self.min_caption is not None and length < self.min_caption:
            return f"caption too short: {length} characters"
        if self.max_caption is not None and length > self.max_caption:
            return f"caption too long: {length} characters"
        return None


ORIGINAL = Storage()
ANY = Filters()


def _encode(pixels: torch.Tensor, extension: str, quality: int) -> bytes:
    """Encodes uint8 pixels of shape (3, H, W)."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    if extension == "jpg":
        encoded: bytes = simplejpeg.encode_jpeg(
            array, quality=quality, colorspace="RGB", colorsubsampling="444"
        )
        return encoded
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    try:
        if extension == "webp":
            image.save(buffer, "WEBP", quality=quality, method=4)
        else:
            image.save(buffer, "PNG")
    except ValueError as error:  # WebP has at most 16383 pixels a side
        raise DecodeError(f"cannot be encoded as {extension} ({error})") from None
    return buffer.getvalue()
