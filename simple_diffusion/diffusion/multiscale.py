"""The multiscale loss: the same error, also measured after average pooling."""

import math

from torch import Tensor
from torch.nn.functional import avg_pool2d

from simple_diffusion.diffusion.logsnr import at_least_float32


def scales(image_size: int, smallest: int) -> list[int]:
    """Sides of square images from `smallest` to `image_size`, doubling.

    Raises:
        ValueError: if `image_size` is not `smallest` times a power of two.
    """
    sizes = [image_size]
    while sizes[0] > smallest and sizes[0] % 2 == 0:
        sizes.insert(0, sizes[0] // 2)
    if sizes[0] != smallest:
        raise ValueError(
            f"multiscale loss from {smallest} does not fit images of side {image_size}: "
            f"{image_size} must be {smallest} times a power of two"
        )
    return sizes


def pooling_factor(image_size: int, smallest: int) -> int:
    """How much the coarsest scale is pooled: 2^n for n halvings of `image_size`.

    Images whose area lies between half and twice that of the square (twice included) are halved
    as often, so aspect buckets fit whose heights and widths are multiples of this.

    Raises:
        ValueError: as `scales`.
    """
    return 2 ** (len(scales(image_size, smallest)) - 1)


def side_length(height: int, width: int) -> float:
    """d = √(H·W): the side of the square of the same area; exact for squares."""
    return math.sqrt(height * width)


def halvings(height: int, width: int, smallest: int) -> int:
    """How often images are pooled by two: n = round(log2(d / smallest)), with d = √(H·W).

    A half is rounded down. Squares must meet `smallest` exactly.

    Raises:
        ValueError: if a square's side is not `smallest` times a power of two, if a rectangle's
            area is not above half of `smallest`², or if 2^n does not divide height and width.
    """
    if height == width:
        return len(scales(height, smallest)) - 1
    area, least = height * width, smallest**2
    if smallest < 1 or 2 * area <= least:
        raise ValueError(
            f"multiscale loss from {smallest} does not fit images of {height}x{width}: their area "
            f"must be above half of that of {smallest}x{smallest}"
        )
    count = 0
    while area > 2 * least * 4**count:  # in integers: the rounding is the same everywhere
        count += 1
    if height % 2**count or width % 2**count:
        raise ValueError(
            f"multiscale loss from {smallest} pools by {2**count}, which does not divide "
            f"images of {height}x{width}"
        )
    return count


def multiscale_loss(error: Tensor, smallest: int) -> Tensor:
    """Σ_s (1/s) · mean |pool_s(error)|² over s in {d/2^n, ..., d/2, d}, for each image.

    d = √(H·W), so that all shapes of one area have the same scales and weights; n is that of
    `halvings`, and d/2^n the size nearest to `smallest`, which it is exactly for squares. Both
    sides are pooled by the same factor. Source: Hoogeboom et al. 2023, section 3.2, for squares.

    Args:
        error: prediction error, shape (B, C, H, W).
        smallest: the coarsest scale, in pixels: the side of a square.

    Returns:
        Shape (B,), float32 or better.

    Raises:
        ValueError: as `halvings`.
    """
    error = at_least_float32(error)
    height, width = error.shape[-2:]
    count, size = halvings(height, width, smallest), side_length(height, width)
    total = error.square().mean(dim=(1, 2, 3)) / size
    for _ in range(count):
        error, size = avg_pool2d(error, 2), size / 2
        total = total + error.square().mean(dim=(1, 2, 3)) / size
    return total
