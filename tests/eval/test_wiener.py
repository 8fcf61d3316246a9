import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from eval.wiener import WienerDenoiser, yardstick

LOGSNR = [-12.0, -4.0, -1.0, 0.0, 2.0, 6.0]


def batches(images: Tensor, size: int = 50) -> list[Tensor]:
    return list(images.split(size))


def alpha_sigma(logsnr: float) -> tuple[float, float]:
    return 1 / math.sqrt(1 + math.exp(-logsnr)), 1 / math.sqrt(1 + math.exp(logsnr))


def smooth_covariance(size: int) -> Tensor:
    """Neighbours correlated in space and over channels, and three patterns across all; (3hw, 3hw).

    The first part is local, which the bands see better; the patterns hold fine and coarse detail
    together, which only components of the whole image can.
    """
    axis = torch.arange(size, dtype=torch.float64)
    near = torch.exp(-(axis[:, None] - axis[None]).abs() / 2)
    channels = 0.6 * torch.ones(3, 3, dtype=torch.float64) + 0.4 * torch.eye(3).double()
    ramp = 0.03 + 0.05 * axis / size  # not stationary: the lower rows vary more
    local = torch.kron(channels, torch.kron(ramp[:, None].sqrt() * near * ramp.sqrt(), near))
    generator = torch.Generator().manual_seed(0)
    patterns = 0.1 * torch.randn(len(local), 3, dtype=torch.float64, generator=generator)
    return local + patterns @ patterns.T


def gaussian_images(count: int, size: int, seed: int) -> Tensor:
    """Images as uint8, whose values on [-1, 1] are Gaussian about 0.1 with `smooth_covariance`."""
    factor = torch.linalg.cholesky(smooth_covariance(size))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3 * size * size, dtype=torch.float64, generator=generator)
    x = 0.1 + noise @ factor.T
    return ((x.view(-1, 3, size, size) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def few_images() -> Tensor:
    """Few images of many dimensions, so that both bases are needed; (240, 3, 12, 12)."""
    return gaussian_images(240, 12, seed=3)


@pytest.fixture(scope="module")
def denoiser(few_images: Tensor) -> WienerDenoiser:
    return WienerDenoiser.fit(batches(few_images), band_size=60)


def affine(denoiser: WienerDenoiser, logsnr: float) -> tuple[Tensor, Tensor]:
    """The denoiser as a dense float64 map z -> A z + b, read off its answers to unit vectors."""
    dims = math.prod(denoiser.shape)
    probes = torch.cat([torch.zeros(1, dims), torch.eye(dims)]).view(-1, *denoiser.shape)
    answers = denoiser.denoise(probes, logsnr).flatten(1).double()
    return (answers[1:] - answers[0]).T, answers[0]


@pytest.mark.parametrize("logsnr", LOGSNR)
def test_gaussian_data_reach_the_error_of_the_true_covariance(logsnr: float) -> None:
    size, seen = 3, 8000
    denoiser = WienerDenoiser.fit(
        batches(gaussian_images(seen, size, seed=0), 1000), max_images=seen
    )
    measured = denoiser.eps_mse(batches(gaussian_images(4000, size, seed=1), 1000), [logsnr])[0]
    snr = math.exp(logsnr)
    d = torch.linalg.eigvalsh(smooth_covariance(size))
    expected = float((snr * d / (1 + snr * d)).mean())
    assert measured == pytest.approx(expected, rel=0.05)
    assert measured != pytest.approx(1.2 * expected, rel=0.05)


@pytest.mark.parametrize("logsnr", LOGSNR)
def test_denoise_is_the_posterior_mean_of_a_gaussian(
    denoiser: WienerDenoiser, logsnr: float
) -> None:
    # A posterior mean is A = α C (α² C + σ²)⁻¹; so C follows from A at this λ, must be a
    # covariance, and must give, by a dense float64 inverse, the answers at a λ close by.
    dense, _ = affine(denoiser, logsnr)
    alpha, sigma = alpha_sigma(logsnr)
    eye = torch.eye(len(dense), dtype=torch.float64)
    covariance = sigma**2 * torch.linalg.solve(alpha * (eye - alpha * dense), dense)
    assert torch.allclose(covariance, covariance.T, atol=1e-4)
    assert float(torch.linalg.eigvalsh((covariance + covariance.T) / 2)[0]) > -1e-4

    mean = affine(denoiser, -math.inf)[1]
    other = logsnr + 0.05
    alpha, sigma = alpha_sigma(other)
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(4, *denoiser.shape, generator=generator)
    inverse = torch.linalg.inv(alpha**2 * covariance + sigma**2 * eye)
    posterior = mean + (z.flatten(1).double() - alpha * mean) @ inverse @ covariance * alpha
    answer = denoiser.denoise(z, other).flatten(1).double()
    assert torch.allclose(answer, posterior, atol=2e-3)


def test_both_bases_are_used_and_neither_everywhere(denoiser: WienerDenoiser) -> None:
    assert len({denoiser._best(value) for value in (-4.0, 8.0)}) == 2


def test_limits(denoiser: WienerDenoiser, few_images: Tensor) -> None:
    z = torch.randn(3, *denoiser.shape, generator=torch.Generator().manual_seed(2))
    blind = denoiser.denoise(z, -math.inf)
    assert torch.allclose(blind, blind[:1].expand_as(blind), atol=1e-6)
    mean = (few_images.float() / 127.5 - 1).mean(0)
    assert float((blind[0] - mean).abs().mean()) < 0.03
    assert torch.allclose(denoiser.predict_eps(z, -math.inf), z, atol=1e-5)
    assert torch.allclose(denoiser.denoise(z, math.inf), z, atol=1e-5)
    assert float(denoiser.predict_eps(z, math.inf).abs().max()) == 0

    held_out = batches(gaussian_images(50, 12, seed=9))
    low, high = denoiser.eps_mse(held_out, [-100.0, 100.0])
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("logsnr", LOGSNR)
def test_analytic_error_is_that_of_the_denoiser_as_a_linear_map(
    denoiser: WienerDenoiser, logsnr: float
) -> None:
    images = gaussian_images(30, 12, seed=7)
    dense, offset = affine(denoiser, logsnr)
    alpha, sigma = alpha_sigma(logsnr)
    x = (images.double() / 127.5 - 1).flatten(1)
    # e_x = (α A - 1) x + b + σ A eps, and e_eps = -(α/σ) e_x.
    bias = (alpha * x @ dense.T + offset - x).square().mean()
    expected = (alpha / sigma) ** 2 * (bias + sigma**2 * dense.square().sum() / x.shape[1])
    assert denoiser.eps_mse([images], [logsnr])[0] == pytest.approx(float(expected), rel=2e-3)


def test_eps_and_x0_agree_and_each_image_keeps_its_logsnr(denoiser: WienerDenoiser) -> None:
    z = torch.randn(3, *denoiser.shape, generator=torch.Generator().manual_seed(1))
    logsnr = torch.tensor([-3.0, 1.0, 5.0])
    x0, eps = denoiser.denoise(z, logsnr), denoiser.predict_eps(z, logsnr)
    for i, value in enumerate(logsnr.tolist()):
        alpha, sigma = alpha_sigma(value)
        assert torch.allclose(alpha * x0[i] + sigma * eps[i], z[i], atol=1e-4)
        assert torch.allclose(x0[i], denoiser.denoise(z[i : i + 1], value)[0], atol=1e-6)


def test_error_on_new_images_is_near_the_best_possible(denoiser: WienerDenoiser) -> None:
    # 192 images give directions in 432 dimensions: the bare sample covariance errs many times over.
    measured = denoiser.eps_mse([gaussian_images(200, 12, seed=8)], LOGSNR)
    d = torch.linalg.eigvalsh(smooth_covariance(12))
    for value, error in zip(LOGSNR, measured, strict=True):
        snr = math.exp(value)
        best = float((snr * d / (1 + snr * d)).mean())
        assert 0.97 * best < error < 1.35 * best


def test_constant_pixels_cost_nothing_and_do_not_divide_by_zero() -> None:
    images = torch.full((40, 3, 4, 4), 200, dtype=torch.uint8)
    denoiser = WienerDenoiser.fit([images])
    assert denoiser.eps_mse([images], [-10.0, 0.0, 10.0]) == pytest.approx([0, 0, 0], abs=0.02)
    z = torch.zeros(1, 3, 4, 4)
    assert torch.allclose(denoiser.denoise(z, 3.0), torch.tensor(200 / 127.5 - 1), atol=1e-4)


def test_limits_on_images_and_memory_are_kept(few_images: Tensor) -> None:
    taken = 0

    def stream() -> Iterator[Tensor]:
        nonlocal taken
        for batch in batches(few_images, 30):
            taken += len(batch)
            yield batch

    assert WienerDenoiser.fit(stream(), max_images=70).images == 70
    assert taken == 90
    small = WienerDenoiser.fit(batches(few_images), memory_gb=16 * 432 * 20 / 1e9)
    assert small.images == 20


def test_yardstick_is_what_a_report_reads(few_images: Tensor) -> None:
    figures = yardstick(batches(few_images), [gaussian_images(20, 12, seed=4)], [-2, 2])
    assert figures["logsnr"] == [-2, 2]
    assert figures["images"] == 240
    assert 0 < figures["eps_mse"][0] < figures["eps_mse"][1] < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no images"),
        ([torch.zeros(4, 3, 8, 8)], "uint8"),
        ([torch.zeros(20, 8, 8, 3, dtype=torch.uint8)], "shape"),
        ([torch.zeros(9, 3, 8, 8, dtype=torch.uint8)], "ten images"),
        ([torch.zeros(20, 3, s, s, dtype=torch.uint8) for s in (8, 4)], "among"),
    ],
)
def test_refusals(given: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WienerDenoiser.fit(given)


def test_refuses_other_sizes_and_nothing_to_measure(denoiser: WienerDenoiser) -> None:
    with pytest.raises(ValueError, match="shape"):
        denoiser.denoise(torch.zeros(1, 3, 8, 8), 0.0)
    with pytest.raises(ValueError, match="measured"):
        denoiser.eps_mse([], [0.0])
    with pytest.raises(ValueError, match="memory_gb"):
        WienerDenoiser.fit([torch.zeros(20, 3, 8, 8, dtype=torch.uint8)], memory_gb=1e-6)
