"""The multiscale loss: the same error, also measured after average pooling."""

from torch import Tensor
from torch.nn.functional import avg_pool2d

from simple_diffusion.diffusion.logsnr import at_least_float32


def scales(image_size: int, smallest: int) -> list[int]:
    """Sizes from `smallest` to `image_size`, doubling.

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


def multiscale_loss(error: Tensor, smallest: int) -> Tensor:
    """Σ_s (1/s) · mean |pool_s(error)|² over s in {smallest, ..., d}, for each image.

    d is the shorter side of the image; both sides are pooled by the same factor d/s.
    Source: Hoogeboom et al. 2023, section 3.2.

    Args:
        error: prediction error, shape (B, C, H, W).
        smallest: the coarsest scale, in pixels of the shorter side.

    Returns:
        Shape (B,), float32 or better.

    Raises:
        ValueError: if the shorter side is not `smallest` times a power of two, or if a pooling
            factor does not divide the longer one.
    """
    error = at_least_float32(error)
    height, width = error.shape[-2:]
    side = min(height, width)
    sizes = scales(side, smallest)
    largest_factor = side // smallest
    if max(height, width) % largest_factor:
        raise ValueError(
            f"multiscale loss from {smallest} pools by {largest_factor}, which does not divide "
            f"images of {height}x{width}"
        )
    total = None
    for size in reversed(sizes):
        if size != side:
            error = avg_pool2d(error, 2)
        term = error.square().mean(dim=(1, 2, 3)) / size
        total = term if total is None else total + term
    assert total is not None
    return total
