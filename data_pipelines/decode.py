"""Encoded image -> uint8 tensor of a given shape: fast for JPEG, safe for anything."""

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
    size: int | tuple[int, int],
    *,
    crop: tuple[float, float] = (0.5, 0.5),
    max_pixels: int = MAX_PIXELS,
) -> torch.Tensor:
    """Decodes an image, scales it to cover `size` exactly one way, and cuts the other way.

    JPEG is decoded at the smallest DCT scale that still covers the result. Scaling is bicubic
    with antialiasing, on uint8. Greyscale, palette, CMYK and 16-bit images become 8-bit RGB,
    transparency is laid on white, and the EXIF orientation is honoured. The image is cut before
    it is scaled, which is the same geometry and bounds the memory for any aspect ratio.

    Args:
        data: The encoded image.
        size: Height and width of the result in pixels, or the side of a square.
        crop: Where the cut lies in the upright image, (across, down), each in [0, 1]:
            0 is left or top, 1 is right or bottom.
        max_pixels: Images that declare more pixels are refused before they are decoded.

    Returns:
        uint8 tensor of shape (3, height, width), contiguous.

    Raises:
        DecodeError: Not an image of a known format, damaged, or too large.
    """
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.empty((3, height, width), dtype=torch.uint8)
    decode_into(data, image, crop=crop, max_pixels=max_pixels)
    return image


def decode_into(
    data: bytes,
    out: torch.Tensor,
    *,
    crop: tuple[float, float] = (0.5, 0.5),
    max_pixels: int = MAX_PIXELS,
) -> None:
    """As `decode`, into memory that is there: fastest if that is channels-last.

    Args:
        data: The encoded image.
        out: uint8 tensor of shape (3, height, width), to be filled.
        crop: As in `decode`.
        max_pixels: As in `decode`.

    Raises:
        DecodeError: As `decode`; `out` is then undefined.
    """
    height, width = out.shape[1:]
    if _is_jpeg(data) and _decoded_straight(data, out, max_pixels):
        return
    pixels, orientation = decode_pixels(data, covering=(height, width), max_pixels=max_pixels)
    out.copy_(fit(pixels, orientation, (height, width), crop))


def fit(
    pixels: Pixels, orientation: int, size: tuple[int, int], crop: tuple[float, float] = (0.5, 0.5)
) -> torch.Tensor:
    """Cuts, scales and turns decoded pixels: what `decode` does after `decode_pixels`.

    Returns:
        uint8 tensor of shape (3, height, width), in any memory layout.
    """
    transpose, flip_x, flip_y = _TURNS[orientation]
    # The cut is made in the stored frame, so that only the small result has to be turned.
    across = 1.0 - crop[0] if flip_x else crop[0]
    down = 1.0 - crop[1] if flip_y else crop[1]
    if transpose:
        across, down, size = down, across, (size[1], size[0])
    return _turn(_resize(_cut(pixels, size, across, down), size), orientation)


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
    data: bytes, *, covering: tuple[int, int] | None, max_pixels: int = MAX_PIXELS
) -> tuple[Pixels, int]:
    """Decodes to RGB as stored.

    Args:
        data: The encoded image.
        covering: If given, a JPEG may be decoded at a reduced scale whose upright height and width
            are still at least these.
        max_pixels: As in `decode`.

    Returns:
        uint8 array of shape (H, W, 3), and the EXIF orientation that it has yet to be turned by.

    Raises:
        DecodeError: As `decode`.
    """
    if not data:
        raise DecodeError("the file is empty")
    if _is_jpeg(data):
        return _decode_jpeg(data, covering, max_pixels)
    return _decode_with_pillow(data, max_pixels)


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Reads an image's header, whatever its file is called.

    Raises:
        DecodeError: As `decode`, but damage behind the header goes unnoticed.
    """
    if _is_jpeg(data):
        width, height, _ = _jpeg_header(data, max_pixels)
        orientation, extension = jpeg_orientation(data), "jpg"
    else:
        image = _open_with_pillow(data, max_pixels)
        (width, height), orientation = image.size, _orientation(image)
        extension = _PILLOW_FORMATS[image.format or ""]
    if _TURNS[orientation][0]:
        width, height = height, width
    return ImageInfo(width, height, extension)


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


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


def _decoded_straight(data: bytes, out: torch.Tensor, max_pixels: int) -> bool:
    """Decodes into `out`, if the image already is what that asks for and so is its layout."""
    rows = out.permute(1, 2, 0)
    width, height, _ = _jpeg_header(data, max_pixels)
    if (height, width) != rows.shape[:2] or not rows.is_contiguous() or jpeg_orientation(data) != 1:
        return False
    try:
        simplejpeg.decode_jpeg(data, "RGB", buffer=rows.numpy())
    except ValueError as error:
        raise DecodeError(f"damaged JPEG ({error})") from None
    return True


def _decode_jpeg(
    data: bytes, covering: tuple[int, int] | None, max_pixels: int
) -> tuple[Pixels, int]:
    width, height, subsampling = _jpeg_header(data, max_pixels)
    orientation = jpeg_orientation(data)
    reserve = _RESERVE.get(subsampling, 4)
    least_height, least_width = (reserve * side for side in covering or (0, 0))
    if _TURNS[orientation][0]:
        least_height, least_width = least_width, least_height
    if least_height > height or least_width > width:
        least_height = least_width = 0  # full size
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=least_height, min_width=least_width)
    except ValueError as error:
        raise DecodeError(f"damaged JPEG ({error})") from None
    return pixels, orientation


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


def _cut(pixels: Pixels, target: tuple[int, int], across: float, down: float) -> Pixels:
    """Cuts out the largest part of the target's shape."""
    height, width = pixels.shape[:2]
    scale = min(height / target[0], width / target[1])
    rows = min(height, max(1, round(target[0] * scale)))
    columns = min(width, max(1, round(target[1] * scale)))
    top, left = round((height - rows) * down), round((width - columns) * across)
    return pixels[top : top + rows, left : left + columns]


def _resize(pixels: Pixels, target: tuple[int, int]) -> torch.Tensor:
    """Scales (H, W, 3) to a (3, h, w) tensor; its memory stays channels-last."""
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
