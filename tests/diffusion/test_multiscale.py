"""The multiscale loss against scalar loops in pure Python and its frequency response."""

import math

import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.multiscale import (
    halvings,
    multiscale_loss,
    pooling_factor,
    scales,
    side_length,
)

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
    """Σ_j (2^j/d) mean |pooled 2^j-fold|², d = √(H·W), pooling the full image directly each time.

    The number of scales is the one whose coarsest, d/2^n, is nearest to `smallest` by ratio.
    """
    losses = []
    for image in error.tolist():
        side = math.sqrt(len(image[0]) * len(image[0][0]))
        last = min(range(12), key=lambda n: abs(math.log(side / 2**n / smallest)))
        total = 0.0
        for factor in (2**j for j in range(last + 1)):
            squares = [x * x for plane in image for row in halve(plane, factor) for x in row]
            total += math.fsum(squares) / len(squares) * factor / side
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
        ((2, 3, 16, 40), 4),  # wide: d = 25.3, pooled by 8 as 32x32 is
        ((2, 3, 48, 16), 8),  # tall: d = 27.7
        ((2, 1, 20, 24), 5),  # d = 21.9, pooled by 4: 5.5 is the coarsest size
        ((1, 3, 24, 16), 16),  # d = 19.6: a single scale
        ((1, 3, 12, 16), 16),  # d = 13.9: smaller than `smallest`, but nearest to it
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


STAIRS = {
    (64, 32): ("0x1.52c211eaaaaaap-5", "0x1.51b3522aaaaabp-5"),
    (48, 3): ("0x1.1cee8b9161f9cp-4", "0x1.1db12a61f9addp-4"),
    (32, 32): ("0x1.5806eeaaaaaabp-5", "0x1.5820995555555p-5"),
    (128, 16): ("0x1.6e43680aaaaabp-6", "0x1.6c2f9b97fffffp-6"),
}


@pytest.mark.parametrize(("side", "smallest"), STAIRS)
def test_squares_are_as_they_were_before_there_were_rectangles(side: int, smallest: int) -> None:
    # Integers over 64, so that every sum is exact in float64, in whatever order.
    error = ((torch.arange(6 * side**2, dtype=torch.float64) * 7919) % 257 - 128) / 64
    loss = multiscale_loss(error.view(2, 3, side, side), smallest)
    assert tuple(value.hex() for value in loss.tolist()) == STAIRS[side, smallest]


@pytest.mark.parametrize(
    ("height", "width", "smallest"), [(384, 640, 32), (16, 40, 4), (24, 20, 5)]
)
def test_an_image_on_its_side_has_the_same_loss(height: int, width: int, smallest: int) -> None:
    error = noise(2, 3, height, width)
    lying = multiscale_loss(error.transpose(2, 3).contiguous(), smallest)
    torch.testing.assert_close(multiscale_loss(error, smallest), lying, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("height", "width"), [(384, 640), (640, 384), (768, 320), (512, 512)])
def test_shapes_of_about_one_area_are_pooled_alike(height: int, width: int) -> None:
    """An aspect bucket of 512px has the square's scales, and white error the square's loss."""
    factor = pooling_factor(512, 32)
    assert factor == 16
    assert 2 ** halvings(height, width, 32) == factor
    assert side_length(height, width) == pytest.approx(512, rel=0.05)
    loss = multiscale_loss(noise(2, 3, height, width), 32).mean().item()
    # Σ_j (2^j/d) 4^-j = (2 - 1/16)/d: pooling k-fold divides white error by k².
    assert loss == pytest.approx((2 - 1 / 16) / math.sqrt(height * width), rel=0.01, abs=0.0)


def test_constant_error_on_a_rectangle_by_hand() -> None:
    # d = √(8·18) = 12 and 12/4 is nearest to 3 among 12, 6, 3: but 18/4 is no integer
    with pytest.raises(ValueError, match="pools by 4, which does not divide images of 8x18"):
        multiscale_loss(torch.full((1, 3, 8, 18), 0.5), 3)
    # from 6: .25 (1/12 + 1/6) = 1/16
    assert multiscale_loss(torch.full((1, 3, 8, 18), 0.5), 6).item() == 0.0625


def test_the_number_of_halvings_is_rounded_by_ratio() -> None:
    # d/smallest = √2 is a tie between none and one: it goes down, as do all ties.
    assert halvings(32, 64, 32) == 0
    assert halvings(64, 128, 32) == 1
    assert halvings(32, 66, 32) == 1
    assert halvings(34, 32, 32) == 0
    for height in range(8, 200, 8):
        for width in range(8, 200, 8):
            ratio = math.log2(math.sqrt(height * width) / 16)
            if height == width or not ratio > -0.5 or math.isclose(ratio % 1, 0.5):
                continue
            count = round(ratio)
            if height % 2**count or width % 2**count:
                with pytest.raises(ValueError, match=f"pools by {2**count}, which does not divide"):
                    halvings(height, width, 16)
            else:
                assert halvings(height, width, 16) == count


@pytest.mark.parametrize(
    ("height", "width", "smallest"),
    [(16, 32, 32), (24, 20, 32), (32, 64, 0), (32, 64, -32)],
)
def test_rectangles_below_the_smallest_scale_are_refused(
    height: int, width: int, smallest: int
) -> None:
    with pytest.raises(ValueError, match=f"does not fit images of {height}x{width}: their area"):
        multiscale_loss(torch.zeros(1, 3, height, width), smallest)


def test_pooling_factor() -> None:
    assert [pooling_factor(side, 32) for side in (32, 64, 256, 1024)] == [1, 2, 8, 32]
    with pytest.raises(ValueError, match="48 must be 32 times a power of two"):
        pooling_factor(48, 32)
    with pytest.raises(ValueError, match="48 must be 32 times a power of two"):
        multiscale_loss(torch.zeros(1, 3, 48, 48), 32)
