"""Noise levels against scalar float64 arithmetic."""

import math

import pytest
import torch

from simple_diffusion.diffusion.logsnr import (
    alpha_sigma,
    at_least_float32,
    logsnr_from_tau,
    match_dims,
    tau_from_logsnr,
)

LEVELS = [-25.0, -20.0, -6.0, -0.5, 0.0, 0.5, 6.0, 20.0, 25.0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("level", LEVELS)
def test_alpha_and_sigma_keep_relative_precision(
    level: float, dtype: torch.dtype, tolerance: float
) -> None:
    alpha, sigma = alpha_sigma(torch.tensor([level], dtype=dtype))
    # 1/(1+e^-λ) is well conditioned for either sign: a relative comparison is fair at ±25
    assert alpha.item() == pytest.approx(
        1.0 / math.sqrt(1.0 + math.exp(-level)), rel=tolerance, abs=0.0
    )
    assert sigma.item() == pytest.approx(
        1.0 / math.sqrt(1.0 + math.exp(level)), rel=tolerance, abs=0.0
    )


def test_variance_preserving_and_log_ratio() -> None:
    logsnr = torch.linspace(-25.0, 25.0, 501, dtype=torch.float64)
    alpha, sigma = alpha_sigma(logsnr)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(logsnr), rtol=0, atol=1e-14)
    torch.testing.assert_close(2.0 * torch.log(alpha / sigma), logsnr, rtol=0, atol=1e-12)


def test_infinite_levels_are_pure_signal_and_pure_noise() -> None:
    alpha, sigma = alpha_sigma(torch.tensor([math.inf, -math.inf]))
    assert alpha.tolist() == [1.0, 0.0]
    assert sigma.tolist() == [0.0, 1.0]
    assert tau_from_logsnr(torch.tensor([math.inf, -math.inf])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("level", LEVELS)
def test_tau_is_sigma_over_alpha_plus_sigma(
    level: float, dtype: torch.dtype, tolerance: float
) -> None:
    tau = tau_from_logsnr(torch.tensor(level, dtype=dtype)).item()
    # σ/(α+σ) = 1/(1 + α/σ), and α/σ = e^(λ/2)
    assert tau == pytest.approx(1.0 / (1.0 + math.exp(0.5 * level)), rel=tolerance, abs=0.0)


def test_logsnr_from_tau_by_hand_and_round_trip() -> None:
    # τ = 1/4: λ = 2 ln(.75/.25) = 2 ln 3 = 2.197225; τ = 9/10: λ = -2 ln 9 = -4.394449
    by_hand = logsnr_from_tau(torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64))
    assert by_hand.tolist() == pytest.approx([2.197225, 0.0, -4.394449], abs=1e-6)
    logsnr = torch.linspace(-20.0, 20.0, 401, dtype=torch.float64)
    torch.testing.assert_close(logsnr_from_tau(tau_from_logsnr(logsnr)), logsnr, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_low_precision_is_promoted(dtype: torch.dtype) -> None:
    logsnr = torch.tensor([-3, 4], dtype=dtype)
    assert at_least_float32(logsnr).dtype == torch.float32
    for value in (*alpha_sigma(logsnr), tau_from_logsnr(logsnr)):
        assert value.dtype == torch.float32
    # α(4)² = 1/(1+e^-4) = .982014: the promotion comes before the arithmetic, not after it
    assert alpha_sigma(logsnr)[0][1].item() ** 2 == pytest.approx(0.982014, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_and_float64_are_left_alone(dtype: torch.dtype) -> None:
    assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == dtype
    assert alpha_sigma(torch.zeros(1, dtype=dtype))[0].dtype == dtype


def test_match_dims_broadcasts_over_images() -> None:
    assert match_dims(torch.ones(5), torch.zeros(5, 3, 2, 2)).shape == (5, 1, 1, 1)
    assert match_dims(torch.ones(5), torch.zeros(5)).shape == (5,)
