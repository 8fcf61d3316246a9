"""Loss weights against independent closed forms, and the density correction as an integral."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction
from simple_diffusion.diffusion.schedules import (
    Cosine,
    Interpolated,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Shifted,
)
from simple_diffusion.diffusion.timesteps import LogitNormal, TimeDistribution, UniformTime
from simple_diffusion.diffusion.weighting import (
    MinSNR,
    Sigmoid,
    Uniform,
    Weighting,
    density_correction,
    log_x0_factor,
)

LEVELS = [float(level) for level in np.linspace(-25.0, 25.0, 101)]
WEIGHTINGS: list[Weighting] = [Sigmoid(), Sigmoid(-3.0), Sigmoid(2.0), MinSNR(), MinSNR(0.5)]
ClosedForm = Callable[[float], float]


def logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def at(weighting: Weighting, loss: Prediction, dtype: torch.dtype = torch.float64) -> list[float]:
    result: list[float] = weighting(torch.tensor(LEVELS, dtype=dtype), loss).tolist()
    return result


# How much an x0 error of 1 is in each space, squared: α²/σ², 1/σ², (α+σ)²/σ² and 1.
SQUARED_FACTOR: dict[Prediction, ClosedForm] = {
    "eps": lambda level: math.exp(level),
    "v": lambda level: 1.0 + math.exp(level),
    "u": lambda level: (1.0 + math.exp(0.5 * level)) ** 2,
    "x0": lambda level: 1.0,
}


@pytest.mark.parametrize("loss", PREDICTIONS)
def test_x0_factor(loss: Prediction) -> None:
    factor = log_x0_factor(torch.tensor(LEVELS, dtype=torch.float64), loss)
    expected = [math.log(SQUARED_FACTOR[loss](level)) for level in LEVELS]
    assert factor.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_weights_agree_once_mapped_to_x0(weighting: Weighting) -> None:
    """One objective, whichever error it is stated on: w_loss · |e_loss|² is the same number."""
    on_x0 = at(weighting, "x0")
    for loss in PREDICTIONS:
        mapped = [
            weight * SQUARED_FACTOR[loss](level)
            for weight, level in zip(at(weighting, loss), LEVELS, strict=True)
        ]
        assert mapped == pytest.approx(on_x0, rel=1e-12, abs=0.0)


def sigmoid_forms(bias: float) -> dict[Prediction, ClosedForm]:
    return {
        "eps": lambda level: logistic(bias - level),
        "x0": lambda level: math.exp(bias) * logistic(level - bias),
        # S(λ) S(b-λ) and S(λ/2)² S(b-λ): eps errors are α and α/(α+σ) times those of v and u
        "v": lambda level: logistic(level) * logistic(bias - level),
        "u": lambda level: logistic(0.5 * level) ** 2 * logistic(bias - level),
    }


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("loss", PREDICTIONS)
def test_sigmoid_in_closed_form(bias: float, loss: Prediction) -> None:
    expected = [sigmoid_forms(bias)[loss](level) for level in LEVELS]
    assert at(Sigmoid(bias), loss) == pytest.approx(expected, rel=1e-12, abs=0.0)


def min_snr_forms(gamma: float) -> dict[Prediction, ClosedForm]:
    return {
        "x0": lambda level: min(math.exp(level), gamma),
        "eps": lambda level: min(1.0, gamma * math.exp(-level)),
        "v": lambda level: min(logistic(level), gamma * logistic(-level)),
        "u": lambda level: min(logistic(0.5 * level) ** 2, gamma * logistic(-0.5 * level) ** 2),
    }


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("loss", PREDICTIONS)
def test_min_snr_in_closed_form(gamma: float, loss: Prediction) -> None:
    expected = [min_snr_forms(gamma)[loss](level) for level in LEVELS]
    assert at(MinSNR(gamma), loss) == pytest.approx(expected, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("loss", PREDICTIONS)
def test_uniform_is_one_where_the_loss_is_measured(loss: Prediction) -> None:
    assert at(Uniform(), loss) == [1.0] * len(LEVELS)


@pytest.mark.parametrize("weighting", [Uniform(), *WEIGHTINGS], ids=str)
@pytest.mark.parametrize("loss", PREDICTIONS)
def test_float32_is_finite_positive_and_close(weighting: Weighting, loss: Prediction) -> None:
    single = at(weighting, loss, torch.float32)
    assert all(math.isfinite(weight) and weight > 0.0 for weight in single)
    forms: dict[Prediction, ClosedForm] = {loss: lambda level: 1.0}
    if isinstance(weighting, Sigmoid):
        forms = sigmoid_forms(weighting.bias)
    elif isinstance(weighting, MinSNR):
        forms = min_snr_forms(weighting.gamma)
    # an exponential of up to 50 amplifies rounding by as much: 50 x 6e-8. Weights fall to 1e-11,
    # so a comparison with any absolute tolerance would compare nothing at the ends
    expected = [forms[loss](level) for level in LEVELS]
    assert single == pytest.approx(expected, rel=1e-5, abs=0.0)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma must be positive"):
        MinSNR(0.0)
    with pytest.raises(ValueError, match="unknown loss space 'score'"):
        Sigmoid()(torch.zeros(1), "score")  # type: ignore[arg-type]


# --- the density correction: E_t[w(λ) ℓ(λ) (-λ'(t))/p(t)] = ∫ w ℓ dλ

SCHEDULES: dict[str, Schedule] = {
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "linear": LinearBeta(),
    "shifted": Shifted(Cosine(), 256, 64),
    "interpolated": Interpolated(Cosine(), 512, 32, 512),  # here λ' is not a function of λ alone
}
TIMES: dict[str, TimeDistribution] = {
    "uniform": UniformTime(),
    "logit_normal": LogitNormal(),
    "logit_normal_off_centre": LogitNormal(0.4, 1.3),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES.keys())
def test_corrected_expectation_is_an_integral_over_logsnr(
    schedule: Schedule, times: TimeDistribution
) -> None:
    count = 400_000
    t = times.quantile((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    logsnr = schedule(t)
    correction = density_correction(schedule.derivative(t), times.density(t))

    def bump(level: torch.Tensor) -> torch.Tensor:  # a normal density: its integral is 1
        return torch.exp(-0.5 * (level + 1.0) ** 2) / math.sqrt(2.0 * math.pi)

    assert (correction * bump(logsnr)).mean().item() == pytest.approx(1.0, rel=1e-4, abs=0.0)
    weighted = Sigmoid(-1.0)(logsnr, "eps") * bump(logsnr)
    # S(-1-λ) is ½ plus something odd about the bump's centre: the integral is ½
    assert (correction * weighted).mean().item() == pytest.approx(0.5, rel=1e-4, abs=0.0)


def test_density_correction_by_hand() -> None:
    # RF: λ'(½) = -2w/(τ(1-τ)) = -8w with w = 1 - 2/(1+e^7.5) = .9988944; p(½) of a standard
    # logit-normal is 4/√(2π) = 1.5957691: 7.9911555/1.5957691 = 5.007714
    half = torch.tensor([0.5], dtype=torch.float64)
    correction = density_correction(RectifiedFlow().derivative(half), LogitNormal().density(half))
    assert correction.item() == pytest.approx(5.007714, abs=2e-6)
