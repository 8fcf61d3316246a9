"""Wavelet packets against scalar loops, filter identities and round trips."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simple_diffusion.models.wavelets import Wavelet, inverse_packet, packet

WAVELETS: tuple[Wavelet, ...] = ("haar", "cdf53")


def haar_scalar(x: list[float]) -> tuple[list[float], list[float]]:
    pairs = [(x[2 * i], x[2 * i + 1]) for i in range(len(x) // 2)]
    return [(a + b) / math.sqrt(2) for a, b in pairs], [(a - b) / math.sqrt(2) for a, b in pairs]


def cdf53_scalar(x: list[float]) -> tuple[list[float], list[float]]:
    """The 5-tap and 3-tap filters on a mirrored signal: no lifting here."""

    def at(i: int) -> float:
        last = len(x) - 1
        i = -i if i < 0 else i
        return x[2 * last - i if i > last else i]

    low, high = [], []
    for i in range(0, len(x), 2):
        taps = (-1 / 8, 1 / 4, 3 / 4, 1 / 4, -1 / 8)
        low.append(math.sqrt(2) * sum(h * at(i + j - 2) for j, h in enumerate(taps)))
        high.append((at(i + 1) - (at(i) + at(i + 2)) / 2) / math.sqrt(2))
    return low, high


SCALAR: dict[str, Callable[[list[float]], tuple[list[float], list[float]]]] = {
    "haar": haar_scalar,
    "cdf53": cdf53_scalar,
}


def scalar_step(image: Tensor, wavelet: Wavelet) -> list[Tensor]:
    """One 2-D step of one channel: [low, high] along x, each split along y; low y first."""
    rows = [SCALAR[wavelet](row) for row in image.tolist()]
    along_x = [torch.tensor([row[band] for row in rows], dtype=image.dtype) for band in (0, 1)]
    bands = []
    for band in (0, 1):
        for half in along_x:
            columns = [SCALAR[wavelet](column)[band] for column in half.t().tolist()]
            bands.append(torch.tensor(columns, dtype=image.dtype).t())
    return bands


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 10)])
def test_one_step_equals_scalar_loop(wavelet: Wavelet, size: tuple[int, int]) -> None:
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    expected = torch.stack(scalar_step(image[0, 0], wavelet))[None]
    torch.testing.assert_close(packet(image, wavelet, 1), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_second_step_splits_every_band(wavelet: Wavelet) -> None:
    image = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    once = packet(image, wavelet, 1)
    by_band = [torch.stack(scalar_step(band, wavelet)) for band in once[0]]
    expected = torch.stack(by_band, dim=1).flatten(0, 1)[None]
    torch.testing.assert_close(packet(image, wavelet, 2), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize(
    ("steps", "shape"),
    [(0, (2, 3, 4, 4)), (1, (2, 3, 2, 6)), (2, (1, 3, 8, 12)), (4, (1, 2, 32, 16))],
)
def test_round_trips_many_times(wavelet: Wavelet, steps: int, shape: tuple[int, ...]) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        image = torch.randn(shape, dtype=dtype)
        x = image
        for _ in range(50):
            bands = packet(x, wavelet, steps)
            x = inverse_packet(bands, wavelet, steps)
        assert bands.shape == (
            shape[0],
            shape[1] * 4**steps,
            shape[2] // 2**steps,
            shape[3] // 2**steps,
        )
        torch.testing.assert_close(x, image, rtol=0, atol=tolerance)


def test_haar_is_orthonormal() -> None:
    image = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    bands = packet(image, "haar", 3)
    torch.testing.assert_close(bands.square().sum(), image.square().sum())


def test_cdf53_keeps_energy_roughly() -> None:
    # Squared filter norms: 2·(1/64 + 1/16 + 9/16 + 1/16 + 1/64) = 23/16 low, 3/4 high.
    noise = torch.randn(4, 1, 256, 256, dtype=torch.float64)
    ratio = packet(noise, "cdf53", 1).square().sum() / noise.square().sum()
    assert ratio.item() == pytest.approx(((23 / 16 + 3 / 4) / 2) ** 2, rel=0.02)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_constant_goes_to_the_first_band(wavelet: Wavelet) -> None:
    bands = packet(torch.ones(1, 1, 16, 16, dtype=torch.float64), wavelet, 2)
    torch.testing.assert_close(bands[:, 0], torch.full((1, 4, 4), 4.0, dtype=torch.float64))
    assert bands[:, 1:].abs().max() < 1e-13


def test_cdf53_high_band_ignores_ramps() -> None:
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    _, high_x = packet(ramp, "cdf53", 1)[0, :2]
    assert high_x[:, :-1].abs().max() < 1e-13  # the last column sees the mirror
    assert high_x[:, -1].abs().min() > 0.5
