"""Schedules against hand arithmetic, the pooling identity and the published DDPM table."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d

from simple_diffusion.diffusion.prediction import diffuse
from simple_diffusion.diffusion.schedules import (
    Cosine,
    Interpolated,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Shifted,
)

BASES: dict[str, Schedule] = {
    "cosine": Cosine(),
    "cosine20": Cosine(-20.0, 20.0),
    "cosine_uneven": Cosine(-12.0, 6.0),
    "flow": RectifiedFlow(),
    "flow20": RectifiedFlow(-20.0, 20.0),
    "flow_uneven": RectifiedFlow(-9.0, 17.0),
    "linear": LinearBeta(),
    "linear_short": LinearBeta(2e-3, 0.2, 100, 8.0),
}
SCHEDULES: dict[str, Schedule] = BASES | {
    "shifted_cosine": Shifted(Cosine(), 512, 64),
    "shifted_1024": Shifted(Cosine(), 1024, 64),
    "shifted_up": Shifted(RectifiedFlow(), 32, 64),
    "shifted_linear": Shifted(LinearBeta(), 256, 64),
    "interpolated_cosine": Interpolated(Cosine(), 512, 32, 512),
    "interpolated_flow": Interpolated(RectifiedFlow(), 1024, 32, 1024),
    "interpolated_linear": Interpolated(LinearBeta(), 256, 32, 128),
    "interpolated_level": Interpolated(Cosine(), 256, 64, 64),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
each_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
QUARTERS = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)


def times(count: int = 1001) -> Tensor:
    return torch.linspace(0.0, 1.0, count, dtype=torch.float64)


def values(schedule: Schedule, t: Tensor = QUARTERS) -> list[float]:
    result: list[float] = schedule(t).tolist()
    return result


# Golden λ, worked by hand.
#
# Cosine, ±15: b = atan(e^-7.5) = 5.530843e-4 and a = π/2 - 2b, so that
#   t = 0    tan b = e^-7.5                                      λ = 15
#   t = 1/4  a/4 + b = π/8 + b/2 = .3926991 + .0002765 = .3929756,
#            tan = .4142136 + 1.171573 x .0002765 = .4145376      λ = -2 ln .4145376 = 1.761183
#   t = 1/2  a/2 + b = π/4                                        λ = 0
#   t = 3/4 and t = 1: the mirror images.
COSINE = [15.0, 1.761183, 0.0, -1.761183, -15.0]

# Shifted, reference 64: add 2 ln(64/d) = -k 2 ln 2 = -k 1.386294 for d = 64 x 2^k.
#   k = 1: -1.386294   k = 2: -2.772589   k = 3: -4.158883   k = 4: -5.545177
SHIFTED_64 = {
    64: [15.0, 1.761183, 0.0, -1.761183, -15.0],
    128: [13.613706, 0.374889, -1.386294, -3.147477, -16.386294],
    256: [12.227411, -1.011406, -2.772589, -4.533772, -17.772589],
    512: [10.841117, -2.397700, -4.158883, -5.920066, -19.158883],
    1024: [9.454823, -3.783994, -5.545177, -7.306360, -20.545177],
}

# Interpolated, low 32 and high d: the data end moves by 2 ln(d/d) = 0, the noise end by
# 2 ln(32/d), and in between by t times that. At 512: t = 1/4 moves by -5.545177/4 = -1.386294,
# 1.761183 - 1.386294 = .374889.
#   d = 64: -1.386294   128: -2.772589   256: -4.158883   512: -5.545177   1024: -6.931472
INTERPOLATED_32_D = {
    64: [15.0, 1.414609, -0.693147, -2.800904, -16.386294],
    128: [15.0, 1.068036, -1.386294, -3.840625, -17.772589],
    256: [15.0, 0.721462, -2.079442, -4.880345, -19.158883],
    512: [15.0, 0.374889, -2.772589, -5.920066, -20.545177],
    1024: [15.0, 0.028315, -3.465736, -6.959787, -21.931472],
}


def test_cosine_golden() -> None:
    assert values(Cosine()) == pytest.approx(COSINE, abs=2e-6)


@pytest.mark.parametrize(("size", "golden"), SHIFTED_64.items())
def test_shifted_golden(size: int, golden: list[float]) -> None:
    assert values(Shifted(Cosine(), size, 64)) == pytest.approx(golden, abs=2e-6)


@pytest.mark.parametrize(("size", "golden"), INTERPOLATED_32_D.items())
def test_interpolated_golden_with_low_at_the_noise_end(size: int, golden: list[float]) -> None:
    assert values(Interpolated(Cosine(), size, 32, size)) == pytest.approx(golden, abs=2e-6)


def test_golden_between_the_quarters() -> None:
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert values(Cosine(), t) == pytest.approx([3.679740, -3.679740], abs=1e-6)
    # 3.679740 - 4.158883 = -.479143 and -3.679740 - 4.158883 = -7.838623
    assert values(Shifted(Cosine(), 512, 64), t) == pytest.approx([-0.479143, -7.838624], abs=1e-6)
    # 3.679740 - .1 x 5.545177 = 3.125222 and -3.679740 - .9 x 5.545177 = -8.670399
    mixed = Interpolated(Cosine(), 512, 32, 512)
    assert values(mixed, t) == pytest.approx([3.125223, -8.670400], abs=1e-6)


def test_rectified_flow_golden() -> None:
    # τ0 = 1/(1+e^7.5) = 5.527786e-4 at both ends, τ(1/4) = 1/4 + τ0/2 = .25027639:
    # λ = 2 ln(.74972361/.25027639) = 2 (-.2880507 + 1.3851894) = 2.194277
    assert values(RectifiedFlow()) == pytest.approx(
        [15.0, 2.194277, 0.0, -2.194277, -15.0], abs=2e-6
    )


@each_base
@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def test_shift_is_what_pooling_undoes(base: Schedule, size: int) -> None:
    """Pooling d -> 64 multiplies the SNR by (d/64)², which must give back the base schedule."""
    t = times(21)
    pooled_snr = (size / 64) ** 2 * torch.exp(Shifted(base, size, 64)(t))
    torch.testing.assert_close(pooled_snr, torch.exp(base(t)), rtol=1e-12, atol=0)


@each_schedule
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_pooling_multiplies_the_measured_snr(schedule: Schedule, factor: int) -> None:
    """A constant image plus the schedule's noise, pooled: SNR x s², in fact and not on paper."""
    generator = torch.Generator().manual_seed(factor)
    eps = torch.randn(1, 128, 128, 128, generator=generator)
    x0 = torch.full_like(eps, 0.7)
    for t in (0.3, 0.8):
        logsnr = schedule(torch.tensor([t], dtype=torch.float64))
        pooled = avg_pool2d(diffuse(x0, eps, logsnr).double(), factor)
        snr = pooled.mean() ** 2 / pooled.var() / 0.7**2
        # relative standard error of a variance from n numbers: sqrt(2/n) < .008 at s = 8; the
        # mean's own error, 1/sqrt(n SNR) relative, joins it at the noisy end
        expected = factor**2 * math.exp(logsnr.item())
        error = math.sqrt(2.0 / pooled.numel()) + 2.0 / math.sqrt(pooled.numel() * expected * 0.49)
        assert snr.item() == pytest.approx(expected, rel=4.0 * error, abs=0.0)


@each_schedule
def test_strictly_decreasing_and_finite(schedule: Schedule) -> None:
    logsnr = schedule(times(10001))
    assert torch.isfinite(logsnr).all()
    assert (logsnr.diff() < 0.0).all()


@each_schedule
def test_derivative_against_finite_differences(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)
    h = 1e-5
    slope = (schedule(t + h) - schedule(t - h)) / (2.0 * h)
    torch.testing.assert_close(schedule.derivative(t), slope, rtol=1e-5, atol=0)


@each_schedule
def test_derivative_against_autograd_ends_included(schedule: Schedule) -> None:
    t = times(101).requires_grad_()
    (slope,) = torch.autograd.grad(schedule(t).sum(), t)
    torch.testing.assert_close(schedule.derivative(t.detach()), slope, rtol=1e-7, atol=0)


@each_schedule
def test_inverse_round_trip(schedule: Schedule) -> None:
    t = times()
    torch.testing.assert_close(schedule.inverse(schedule(t)), t, rtol=0, atol=1e-9)
    data_end, noise_end = schedule(t[[0, -1]])
    logsnr = torch.lerp(data_end, noise_end, t)
    torch.testing.assert_close(schedule(schedule.inverse(logsnr)), logsnr, rtol=0, atol=1e-9)


@each_schedule
def test_float32_follows_float64(schedule: Schedule) -> None:
    t = torch.linspace(0.0, 1.0, 1025)  # exact in float32
    assert schedule(t).dtype == torch.float32
    assert schedule.derivative(t).dtype == torch.float32
    torch.testing.assert_close(schedule(t).double(), schedule(t.double()), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        schedule.derivative(t).double(), schedule.derivative(t.double()), rtol=1e-5, atol=0
    )
    back = schedule.inverse(schedule(t))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, t, rtol=0, atol=2e-6)


@pytest.mark.parametrize("step", [0, 1, 2, 7, 1016, 1022, 1023, 1024])
def test_cosine_in_float32_near_both_ends(step: int) -> None:
    """One formula for both halves loses 1e-3 at λ = -20, because tan there is near a pole."""
    t = step / 1024
    half_ends = math.atan(math.exp(-10.0))
    angle = (0.5 * math.pi - 2.0 * half_ends) * t + half_ends
    expected = -2.0 * math.log(math.sin(angle) / math.cos(angle))
    assert Cosine(-20.0, 20.0)(torch.tensor(t)).item() == pytest.approx(expected, abs=4e-6)


@pytest.mark.parametrize("low_precision", [torch.bfloat16, torch.float16])
@each_schedule
def test_half_precision_times_are_computed_in_float32(
    schedule: Schedule, low_precision: torch.dtype
) -> None:
    t = torch.tensor([0.0, 0.25, 0.75, 1.0])
    assert torch.equal(schedule(t.to(low_precision)), schedule(t))


# --- LinearBeta


def integrated_decay(schedule: LinearBeta, n: float) -> float:
    """∫ -ln(1-β) over n steps in closed form: β + (1-β) ln(1-β) is an antiderivative in β."""
    slope = (schedule.beta_end - schedule.beta_start) / (schedule.steps - 1)
    beta_0 = schedule.beta_start - 0.5 * slope
    beta_n = beta_0 + n * slope
    return sum(s * (b + (1.0 - b) * math.log1p(-b)) / slope for s, b in ((1, beta_n), (-1, beta_0)))


@pytest.mark.parametrize(
    ("schedule", "tolerance"),
    # a step's integral of -ln(1-β) exceeds its midpoint by about slope²/24, which moves λ most
    # after the first step: slope²/(24 β_1) = 1.7e-7 (published table), 8.4e-5 (coarse)
    [(LinearBeta(), 1e-6), (LinearBeta(2e-3, 0.2, 100, 8.0), 1e-4)],
)
def test_linear_beta_is_the_discrete_table_at_whole_steps(
    schedule: LinearBeta, tolerance: float
) -> None:
    betas = np.linspace(schedule.beta_start, schedule.beta_end, schedule.steps, dtype=np.float64)
    alpha_bar = np.cumprod(1.0 - betas)
    first, start = 1.0, math.log1p(math.exp(-schedule.logsnr_max))
    for _ in range(
        60
    ):  # n where λ = logsnr_max: a fraction of the first step, by secants through 0
        first *= start / integrated_decay(schedule, first)
    assert 0.0 < first < 1.0
    whole = np.arange(1, schedule.steps + 1)
    logsnr = schedule(torch.from_numpy((whole - first) / (schedule.steps - first))).numpy()
    np.testing.assert_allclose(logsnr, np.log(alpha_bar / (1.0 - alpha_bar)), atol=tolerance)


def test_linear_beta_ends() -> None:
    assert values(LinearBeta())[0] == pytest.approx(15.0, abs=1e-9)
    # Σ ln(1-β) = -10.1176 for the published table (ᾱ_T = 4.04e-5); λ = -ln(e^10.1176... - 1)
    assert values(LinearBeta())[-1] == pytest.approx(math.log(4.0358e-5), abs=2e-4)
    assert values(LinearBeta(logsnr_max=9.0))[0] == pytest.approx(9.0, abs=1e-9)


def test_linear_beta_default_start_is_before_the_first_step() -> None:
    # ᾱ_1 = 1 - 1e-4: λ = ln(.9999/.0001) = 9.210240, so λ = 15 lies inside the first step, at
    # n0 = e^-15/9e-5 = .0034 (β(0) = 1e-4 - 1e-5 = 9e-5); the first step ends at t = .9966/999.9966
    t = torch.tensor([0.9966 / 999.9966], dtype=torch.float64)
    assert values(LinearBeta(), t) == pytest.approx([9.210240], abs=1e-3)


# --- ends, bounds and validation


@pytest.mark.parametrize("kind", [Cosine, RectifiedFlow])
@settings(max_examples=50, deadline=None)
@given(low=st.floats(-25.0, 24.0), span=st.floats(0.5, 30.0))
def test_any_bounds_are_reached_exactly(
    kind: type[Cosine] | type[RectifiedFlow], low: float, span: float
) -> None:
    high = min(low + span, 25.0)
    schedule = kind(low, high)
    assert values(schedule)[::4] == pytest.approx([high, low], abs=1e-8)
    assert (schedule(times(101)).diff() < 0.0).all()
    assert (schedule.derivative(times(101)) < 0.0).all()


def test_rectified_flow_is_affine_in_tau_and_never_flat() -> None:
    t = times(11)
    tau = 1.0 / (1.0 + np.exp(0.5 * RectifiedFlow(-9.0, 17.0)(t).numpy()))
    first, last = 1.0 / (1.0 + math.exp(8.5)), 1.0 / (1.0 + math.exp(-4.5))
    np.testing.assert_allclose(tau, first + (last - first) * t.numpy(), atol=1e-14)
    # a clamped schedule would have a zero derivative here; -2w/(τ(1-τ)) is about -2/τ0 at t = 0
    assert RectifiedFlow().derivative(times(2))[0].item() == pytest.approx(
        -3614.0, rel=1e-3, abs=0.0
    )


def test_interpolated_between_shifts() -> None:
    """Equal references are a plain shift; otherwise each end is that end's shift."""
    t = times(11)
    plain = Interpolated(Cosine(), 256, 64, 64)
    torch.testing.assert_close(plain(t), Shifted(Cosine(), 256, 64)(t), rtol=0, atol=1e-12)
    mixed = Interpolated(Cosine(), 256, 32, 128)
    assert mixed(t)[0] == Shifted(Cosine(), 256, 128)(t)[0]
    assert mixed(t)[-1] == Shifted(Cosine(), 256, 32)(t)[-1]


def test_bisected_inverse_maps_outside_levels_to_the_ends() -> None:
    inverse = Interpolated(Cosine(), 256, 32, 128).inverse
    assert inverse(torch.tensor([99.0, -99.0])).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("kind", [Cosine, RectifiedFlow])
@pytest.mark.parametrize(
    "bounds", [(15.0, -15.0), (3.0, 3.0), (-math.inf, 15.0), (-15.0, math.inf), (math.nan, 15.0)]
)
def test_bad_bounds_are_refused(
    kind: type[Cosine] | type[RectifiedFlow], bounds: tuple[float, float]
) -> None:
    with pytest.raises(ValueError, match="logsnr_min"):
        kind(*bounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_start": 0.03}, "beta_start <= beta_end"),
        ({"beta_end": 1.0}, "beta_end < 1"),
        ({"steps": 1}, "steps >= 2"),
        ({"beta_start": 1e-6}, "below half of one step"),
        ({"logsnr_max": -11.0}, "logsnr_max"),
        ({"logsnr_max": math.inf}, "logsnr_max"),
        ({"beta_start": 0.5, "beta_end": 0.999, "steps": 2}, "beta_end"),
    ],
)
def test_bad_linear_beta_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearBeta(**arguments)  # type: ignore[arg-type]


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="reference=0"):
        Shifted(Cosine(), 64, 0)
    with pytest.raises(ValueError, match="image_size=-1"):
        Shifted(Cosine(), -1, 64)
    with pytest.raises(ValueError, match="high=0"):
        Interpolated(Cosine(), 64, 1, 0)
    with pytest.raises(ValueError, match="low=64 must not exceed high=32"):
        Interpolated(Cosine(), 64, 64, 32)
