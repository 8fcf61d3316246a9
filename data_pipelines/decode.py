"""Encoded image -> square uint8 tensor: fast for JPEG, safe for anything."""

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_pipelines.exif import jpeg_orientation

MAX_PIXELS = 2**27  # 134 million: above any phone's usual mode, 400 MB once decoded
# Format -> extension, of what is not JPEG.
_PILLOW_FORMATS = {
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
_ORIENTATION_TAG = 0x0112
# libjpeg scales colours that are stored smaller by as much as the brightness, except for 4:2:0. So
# that they still cover the target, such files are decoded this much larger (measured: 4:2:2 at
# 1/8 had 22 dB without, 35 dB with).
_RESERVE = {"444": 1, "420": 1, "Gray": 1, "422": 2, "440": 2, "411": 4}
# Orientation -> transpose first, then flip left-right, then flip up-down.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}

Pixels = NDArray[np.uint8]


class DecodeError(ValueError):
    """The bytes are not an image that may be used; the message says why."""


class ImageInfo(NamedTuple):
    """What an image's header says: its upright size in pixels and its usual extension."""

    width: int
    height: int
    extension: str


def decode(
    data: bytes,
    size: int,
    *,
    crop: tuple[float, float] = (0.5, 0.5),
    max_pixels: int = MAX_PIXELS,
) -> torch.Tensor:
    """Decodes an image, scales its short side to `size` and cuts out a square.

    JPEG is decoded at the smallest DCT scale that still covers the square. Scaling is bicubic
    with antialiasing, on uint8. Greyscale, palette, CMYK and 16-bit images become 8-bit RGB,
    transparency is laid on white, and the EXIF orientation is honoured. The square is cut before
    it is scaled, which is the same geometry and bounds the memory for any aspect ratio.

    Args:
        data: The encoded image.
        size: Side of the square in pixels.
        crop: Where the square lies in the upright image, (across, down), each in [0, 1]:
            0 is left or top, 1 is right or bottom.
        max_pixels: Images that declare more pixels are refused before they are decoded.

    Returns:
        uint8 tensor of shape (3, size, size), contiguous.

    Raises:
        DecodeError: Not an image of a known format, damaged, or too large.
    """
    pixels, orientation = decode_pixels(data, covering=size, max_pixels=max_pixels)
    transpose, flip_x, flip_y = _TURNS[orientation]
    # The crop is taken in the stored frame, so that only the small result has to be turned.
    across = 1.0 - crop[0] if flip_x else crop[0]
    down = 1.0 - crop[1] if flip_y else crop[1]
    if transpose:
        across, down = down, across
    square = _resize(_cut_square(pixels, across, down), size)
    return _turn(square, orientation).contiguous()


def decode_upright(data: bytes, short_side: int, *, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decodes a whole image, scaling its short side down to `short_side` if it is longer.

    Returns:
        uint8 tensor of shape (3, H, W), upright, contiguous.

    Raises:
        DecodeError: As `decode`.
    """
    pixels, orientation = decode_pixels(data, covering=None, max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    scale = min(1.0, short_side / min(height, width))
    image = _resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
    return _turn(image, orientation).contiguous()


def decode_pixels(
    data: bytes, *, covering: int | None, max_pixels: int = MAX_PIXELS
) -> tuple[Pixels, int]:
    """Decodes to RGB as stored.

    Args:
        data: The encoded image.
        covering: If given, a JPEG may be decoded at a reduced scale whose sides are still at
            least this long.
        max_pixels: As in `decode`.

    Returns:
        uint8 array of shape (H, W, 3), and the EXIF orientation that it has yet to be turned by.

    Raises:
        DecodeError: As `decode`.
    """
    if not data:
        raise DecodeError("the file is empty")
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, covering, max_pixels)
    return _decode_with_pillow(data, max_pixels)


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Reads an image's header, whatever its file is called.

    Raises:
        DecodeError: As `decode`, but damage behind the header goes unnoticed.
    """
    if data[:3] == b"\xff\xd8\xff":
        width, height, _ = _jpeg_header(data, max_pixels)
        orientation, extension = jpeg_orientation(data), "jpg"
    else:
        image = _open_with_pillow(data, max_pixels)
        (width, height), orientation = image.size, _orientation(image)
        extension = _PILLOW_FORMATS[image.format or ""]
    if _TURNS[orientation][0]:
        width, height = height, width
    return ImageInfo(width, height, extension)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise DecodeError(f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} pixels; the limit is {max_pixels} in all")


def _jpeg_header(data: bytes, max_pixels: int) -> tuple[int, int, str]:
    try:
        height, width, _, subsampling = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DecodeError(f"damaged JPEG ({error})") from None
    _check_pixels(width, height, max_pixels)
    return width, height, subsampling


def _decode_jpeg(data: bytes, covering: int | None, max_pixels: int) -> tuple[Pixels, int]:
    width, height, subsampling = _jpeg_header(data, max_pixels)
    least = (covering or 0) * _RESERVE.get(subsampling, 4)
    if least > min(width, height):
        least = 0  # full size
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least)
    except ValueError as error:
        raise DecodeError(f"damaged JPEG ({error})") from None
    return pixels, jpeg_orientation(data)


def _open_with_pillow(data: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=list(_PILLOW_FORMATS))
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too large: {error}") from None
    except UnidentifiedImageError:
        raise DecodeError(
            f"not a file of a known format (JPEG, {', '.join(_PILLOW_FORMATS)})"
        ) from None
    except Exception as error:  # hostile bytes raise nearly anything in the format plug-ins
        raise DecodeError(f"damaged header ({_brief(error)})") from None
    _check_pixels(*image.size, max_pixels)
    return image


def _decode_with_pillow(data: bytes, max_pixels: int) -> tuple[Pixels, int]:
    image = _open_with_pillow(data, max_pixels)
    try:
        image.load()
        return _to_rgb(image), _orientation(image)
    except DecodeError:
        raise
    except Exception as error:  # as above
        raise DecodeError(f"damaged {image.format} ({_brief(error)})") from None


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block does not make the picture unusable
        return 1
    return value if value in _TURNS else 1


def _to_rgb(image: Image.Image) -> Pixels:
    """Converts any mode to 8-bit RGB: shape (H, W, 3)."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips instead of scaling
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DecodeError("grey levels beyond 16 bits")
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _cut_square(pixels: Pixels, across: float, down: float) -> Pixels:
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = round((height - side) * down), round((width - side) * across)
    return pixels[top : top + side, left : left + side]


def _resize(pixels: Pixels, size: int | tuple[int, int]) -> torch.Tensor:
    """Scales (H, W, 3) to a (3, h, w) tensor; its memory stays channels-last."""
    target = (size, size) if isinstance(size, int) else size
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if tuple(image.shape[1:]) == target:
        return image
    # torch's uint8 kernel: within a grey level of Pillow's bicubic, several times faster.
    return F.interpolate(image[None], target, mode="bicubic", antialias=True)[0]


def _turn(image: torch.Tensor, orientation: int) -> torch.Tensor:
    transpose, flip_x, flip_y = _TURNS[orientation]
    if transpose:
        image = image.transpose(1, 2)
    axes = [axis for axis, flip in ((2, flip_x), (1, flip_y)) if flip]
    return image.flip(axes) if axes else image
