"""The multiscale loss against scalar loops in pure Python and its frequency response."""

import math

import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.multiscale import multiscale_loss, scales

Plane = list[list[float]]


def halve(plane: Plane, factor: int) -> Plane:
    """Average pooling by blocks, one number at a time."""
    rows, columns = len(plane) // factor, len(plane[0]) // factor
    return [
        [
            sum(
                plane[row * factor + i][column * factor + j]
                for i in range(factor)
                for j in range(factor)
            )
            / factor**2
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def by_loops(error: Tensor, smallest: int) -> list[float]:
    """Σ_s (1/s) mean |D_s e|², pooling the full image directly to each s."""
    losses = []
    for image in error.tolist():
        side = min(len(image[0]), len(image[0][0]))
        total, size = 0.0, smallest
        while size <= side:
            squares = [x * x for plane in image for row in halve(plane, side // size) for x in row]
            total += math.fsum(squares) / len(squares) / size
            size *= 2
        losses.append(total)
    return losses


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "smallest"),
    [
        ((2, 3, 64, 64), 32),
        ((2, 3, 32, 32), 4),
        ((1, 1, 16, 16), 1),
        ((2, 2, 24, 24), 3),
        ((2, 3, 16, 40), 4),  # wide: both sides are pooled by the same factor
        ((2, 3, 48, 16), 8),  # tall
        ((3, 3, 16, 16), 16),  # a single scale
    ],
)
def test_equals_scalar_loops(shape: tuple[int, ...], smallest: int) -> None:
    error = noise(*shape)
    loss = multiscale_loss(error, smallest)
    assert loss.shape == shape[:1]
    assert loss.tolist() == pytest.approx(by_loops(error, smallest), rel=1e-12, abs=0.0)


def test_one_scale_is_mean_squared_error_over_the_side() -> None:
    error = noise(4, 3, 32, 32)
    expected = error.square().mean(dim=(1, 2, 3)) / 32
    torch.testing.assert_close(multiscale_loss(error, 32), expected, rtol=1e-14, atol=0)


def test_constant_error_by_hand() -> None:
    # pooling changes nothing: .25 (1/32 + 1/64 + 1/128) = .25 x 7/128 = .013671875
    assert multiscale_loss(torch.full((1, 3, 128, 128), 0.5), 32).item() == 0.013671875


@pytest.mark.parametrize("frequency", [(0, 0), (1, 0), (3, 5), (17, 2), (31, 30)])
def test_frequency_response(frequency: tuple[int, int]) -> None:
    """A plane wave f scores Σ_s (1/s) Π H², with H = sin(πkf)/(k sin(πf)) and k = d/s."""
    side, smallest = 64, 8
    cycles = [f / side for f in frequency]
    position = torch.arange(side, dtype=torch.float64)
    phase = 2.0 * math.pi * (cycles[0] * position[:, None] + cycles[1] * position[None, :])
    wave = torch.stack([torch.cos(phase), torch.sin(phase)])[None]  # |cos + i sin|² = 1

    expected = 0.0
    for size in (8, 16, 32, 64):
        k, response = side // size, 1.0
        for f in cycles:
            if f:
                response *= math.sin(math.pi * k * f) / (k * math.sin(math.pi * f))
        expected += response**2 / size
    assert 2.0 * multiscale_loss(wave, smallest).item() == pytest.approx(
        expected, rel=1e-12, abs=0.0
    )


@pytest.mark.parametrize("side", [64, 128])
def test_white_error_counts_for_little(side: int) -> None:
    """White error is worth (2d - 32)/d² of its mean square: each pooling divides it by k²."""
    loss = multiscale_loss(noise(24, 3, side, side), 32).mean().item()
    # the coarsest scale has 24 x 3 x 32² = 74k numbers: .5% relative standard error
    assert loss == pytest.approx((2 * side - 32) / side**2, rel=0.02, abs=0.0)


def test_half_precision_is_measured_in_float32() -> None:
    error = noise(2, 3, 64, 64).bfloat16()
    loss = multiscale_loss(error, 32)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(by_loops(error.double(), 32), rel=1e-5, abs=0.0)


def test_scales() -> None:
    assert scales(32, 32) == [32]
    assert scales(256, 32) == [32, 64, 128, 256]
    assert scales(48, 3) == [3, 6, 12, 24, 48]


@pytest.mark.parametrize(
    ("side", "smallest"), [(96, 32), (100, 32), (16, 32), (64, 48), (64, 0), (64, -32)]
)
def test_sizes_that_do_not_double_are_refused(side: int, smallest: int) -> None:
    with pytest.raises(ValueError, match=f"from {smallest} .* {side} must be"):
        scales(side, smallest)
    with pytest.raises(ValueError, match="power of two"):
        multiscale_loss(torch.zeros(1, 3, side, side), smallest)


def test_a_longer_side_that_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(ValueError, match="pools by 4, which does not divide images of 16x18"):
        multiscale_loss(torch.zeros(1, 3, 16, 18), 4)
    assert multiscale_loss(torch.zeros(1, 3, 16, 20), 4).item() == 0.0
