"""Conversions between eps, x0, v and u against their definitions in scalar float64."""

import math
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.prediction import (
    PREDICTIONS,
    Prediction,
    convert,
    diffuse,
    error_factor,
    target,
)

PAIRS = list(permutations(PREDICTIONS, 2))
ALL_PAIRS = list(product(PREDICTIONS, PREDICTIONS))
each_pair = pytest.mark.parametrize(("source", "to"), PAIRS)


def by_definition(x0: float, eps: float, logsnr: float) -> tuple[float, dict[Prediction, float]]:
    """z and the four quantities for one pixel, from their definitions."""
    alpha = 1.0 / math.sqrt(1.0 + math.exp(-logsnr))
    sigma = 1.0 / math.sqrt(1.0 + math.exp(logsnr))
    z = alpha * x0 + sigma * eps
    return z, {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "u": eps - x0}


def pixel(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def images(seed: int, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)


def test_there_are_twelve_pairs() -> None:
    assert len(PAIRS) == 12
    assert len(ALL_PAIRS) == 16


@pytest.mark.parametrize("logsnr", [-15.0, -4.0, -0.3, 0.0, 1.7, 8.0, 15.0])
@pytest.mark.parametrize(("x0", "eps"), [(0.8, -1.3), (-1.0, 0.2), (0.0, 2.5), (0.5, 0.0)])
def test_all_pairs_by_definition(x0: float, eps: float, logsnr: float) -> None:
    z, values = by_definition(x0, eps, logsnr)
    level = torch.tensor([logsnr], dtype=torch.float64)
    assert diffuse(pixel(x0), pixel(eps), level).item() == pytest.approx(z, abs=1e-14)
    for source, to in ALL_PAIRS:
        assert target(to, pixel(x0), pixel(eps), level).item() == pytest.approx(
            values[to], abs=1e-14
        )
        converted = convert(pixel(values[source]), pixel(z), level, source, to).item()
        # at |λ| = 15 one rounding error of z is divided by 5.5e-4, at most
        assert converted == pytest.approx(values[to], abs=5e-12)


@each_pair
@pytest.mark.parametrize(("dtype", "reach"), [(torch.float64, 15.0), (torch.float32, 6.0)])
def test_round_trip(source: Prediction, to: Prediction, dtype: torch.dtype, reach: float) -> None:
    """Any output of a network, not only a true one, survives there and back."""
    logsnr = torch.linspace(-reach, reach, 61, dtype=dtype)
    output, z = images(0, 61, dtype), images(1, 61, dtype)
    back = convert(convert(output, z, logsnr, source, to), z, logsnr, to, source)
    assert back.dtype == dtype
    torch.testing.assert_close(back, output, rtol=1e-5, atol=1e-5)


@each_pair
def test_finite_in_float32_far_out(source: Prediction, to: Prediction) -> None:
    logsnr = torch.linspace(-25.0, 25.0, 101)
    output, z = images(0, 101, torch.float32), images(1, 101, torch.float32)
    assert torch.isfinite(convert(output, z, logsnr, source, to)).all()
    factor = error_factor(logsnr, source, to)
    assert torch.isfinite(factor).all()
    assert (factor != 0.0).all()


# e_eps = α e_v, e_x0 = -σ e_v, e_u = (α + σ) e_v; with SNR = α²/σ² every ratio is a function of it
FACTORS_AT_LOG_9 = {  # SNR = 9: α = 3/√10, σ = 1/√10
    ("v", "eps"): 3.0 / math.sqrt(10.0),
    ("v", "x0"): -1.0 / math.sqrt(10.0),
    ("v", "u"): 4.0 / math.sqrt(10.0),
    ("eps", "x0"): -1.0 / 3.0,
    ("x0", "eps"): -3.0,
    ("eps", "u"): 4.0 / 3.0,
    ("x0", "u"): -4.0,
    ("u", "x0"): -0.25,
    ("u", "eps"): 0.75,
    ("x0", "v"): -math.sqrt(10.0),
    ("eps", "v"): math.sqrt(10.0) / 3.0,
    ("u", "v"): math.sqrt(10.0) / 4.0,
}


@each_pair
def test_error_factor_by_hand(source: Prediction, to: Prediction) -> None:
    level = torch.tensor([math.log(9.0)], dtype=torch.float64)
    expected = FACTORS_AT_LOG_9[source, to]
    assert error_factor(level, source, to).item() == pytest.approx(expected, rel=1e-13, abs=0.0)


@pytest.mark.parametrize(("source", "to"), ALL_PAIRS)
def test_error_factor_is_the_measured_ratio_of_errors(source: Prediction, to: Prediction) -> None:
    logsnr = torch.linspace(-15.0, 15.0, 61, dtype=torch.float64)
    true, z, error = images(0, 61), images(1, 61), images(2, 61)
    measured = convert(true + error, z, logsnr, source, to) - convert(true, z, logsnr, source, to)
    expected = error_factor(logsnr, source, to).reshape(-1, 1, 1, 1) * error
    # relative to the size of what is subtracted: at the ends that is 1800 times the error
    scale = 1.0 + convert(true, z, logsnr, source, to).abs()
    assert ((measured - expected) / scale).abs().max() < 1e-12


@pytest.mark.parametrize(("source", "to"), ALL_PAIRS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_error_factor_keeps_relative_precision(
    source: Prediction, to: Prediction, dtype: torch.dtype, tolerance: float
) -> None:
    levels = [float(level) for level in range(-25, 26)]
    expected = []
    for level in levels:
        alpha, sigma = (
            1.0 / math.sqrt(1.0 + math.exp(-level)),
            1.0 / math.sqrt(1.0 + math.exp(level)),
        )
        of_v = {"eps": alpha, "x0": -sigma, "v": 1.0, "u": alpha + sigma}
        expected.append(of_v[to] / of_v[source])
    factor = error_factor(torch.tensor(levels, dtype=dtype), source, to)
    assert factor.tolist() == pytest.approx(expected, rel=tolerance, abs=0.0)


@each_pair
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_converted_in_float32(
    source: Prediction, to: Prediction, dtype: torch.dtype
) -> None:
    logsnr = torch.linspace(-6.0, 6.0, 13)
    output, z = images(0, 13, dtype), images(1, 13, dtype)
    converted = convert(output, z, logsnr, source, to)
    assert converted.dtype == torch.float32
    assert torch.equal(converted, convert(output.float(), z.float(), logsnr, source, to))


def test_levels_belong_to_images() -> None:
    """Row i is diffused to λ_i, on non-square images with any number of channels."""
    logsnr = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    x0 = torch.full((3, 2, 4, 6), 0.5, dtype=torch.float64)
    eps = torch.full_like(x0, -1.0)
    z = diffuse(x0, eps, logsnr)
    for row, level in zip(z, logsnr.tolist(), strict=True):
        expected = by_definition(0.5, -1.0, level)[0]
        torch.testing.assert_close(row, torch.full_like(row, expected), rtol=0, atol=1e-14)


def test_unknown_predictions_are_refused() -> None:
    z, level = pixel(0.0), torch.zeros(1)
    with pytest.raises(ValueError, match=r"'epsilon'.*eps, x0, v, u"):
        convert(z, z, level, "epsilon", "x0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'x'"):
        convert(z, z, level, "x0", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'flow'"):
        target("flow", z, z, level)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'flow'"):
        error_factor(level, "v", "flow")  # type: ignore[arg-type]
