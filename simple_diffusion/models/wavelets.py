"""Two-dimensional wavelet packets that turn pixels into channels, and back exactly.

One step halves height and width and quarters the bands into channels; a packet applies the step
again to *every* channel, so k steps give the shape of a patch of side 2^k. Only additions and
multiplications by constants are used, in the dtype given: autocast does not touch them.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Wavelet = Literal["haar", "cdf53"]
SQRT2 = math.sqrt(2.0)


def packet(x: Tensor, wavelet: Wavelet, steps: int) -> Tensor:
    """Wavelet packet of `x`.

    Args:
        x: images, shape (B, C, H, W); H and W divisible by 2^steps.
        wavelet: ``haar`` (orthonormal), or ``cdf53``, the 5/3 pair of Cohen, Daubechies and
            Feauveau (1992) by lifting, roughly energy-preserving.
        steps: how many times the transform is applied, to every channel.

    Returns:
        Shape (B, C·4^steps, H/2^steps, W/2^steps), the lowest band first.
    """
    for _ in range(steps):
        x = torch.cat(_split(x, wavelet, dim=-1), dim=1)
        x = torch.cat(_split(x, wavelet, dim=-2), dim=1)
    return x


def inverse_packet(y: Tensor, wavelet: Wavelet, steps: int) -> Tensor:
    """Inverse of `packet`: shape (B, C·4^steps, H, W) -> (B, C, H·2^steps, W·2^steps)."""
    for _ in range(steps):
        for dim in (-2, -1):
            low, high = y.chunk(2, dim=1)
            y = _merge(low, high, wavelet, dim)
    return y


def _split(x: Tensor, wavelet: Wavelet, dim: int) -> tuple[Tensor, Tensor]:
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim)
    if wavelet == "haar":
        return (even + odd) / SQRT2, (even - odd) / SQRT2
    high = odd - (even + _next(even, dim)) / 2
    low = even + (_previous(high, dim) + high) / 4
    # Lifting leaves gain 1 at frequency zero and 2 at the highest: √2 each keeps energy.
    return low * SQRT2, high / SQRT2


def _merge(low: Tensor, high: Tensor, wavelet: Wavelet, dim: int) -> Tensor:
    if wavelet == "haar":
        even, odd = (low + high) / SQRT2, (low - high) / SQRT2
    else:
        high = high * SQRT2
        even = low / SQRT2 - (_previous(high, dim) + high) / 4
        odd = high + (even + _next(even, dim)) / 2
    # dim counts from the end: a new axis there lies just behind the old one.
    return torch.stack((even, odd), dim=dim).flatten(dim - 1, dim)


def _next(x: Tensor, dim: int) -> Tensor:
    """x[i+1], the last element repeated: the even samples mirrored about the last pixel."""
    n = x.shape[dim]
    return torch.cat((x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)), dim)


def _previous(x: Tensor, dim: int) -> Tensor:
    """x[i-1], the first element repeated: the odd samples mirrored about the first pixel."""
    return torch.cat((x.narrow(dim, 0, 1), x.narrow(dim, 0, x.shape[dim] - 1)), dim)
