"""Positions on the way from noise to data, against the statements that define them."""

import math

import pytest
import torch

from simple_diffusion.diffusion.logsnr import tau_from_logsnr
from simple_diffusion.diffusion.schedules import (
    Cosine,
    Interpolated,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Shifted,
)
from simple_diffusion.diffusion.spacing import (
    SPACINGS,
    Spacing,
    ends_of,
    point,
    position,
    position_per_tau,
)

SCHEDULES = [
    Cosine(),
    RectifiedFlow(-12.0, 14.0),
    LinearBeta(),
    Shifted(Cosine(), 256, 64),
    Interpolated(Cosine(), 512, 32, 512),
]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: type(one).__name__)
spaced = pytest.mark.parametrize("spacing", SPACINGS)
GRID = torch.linspace(0.0, 1.0, 41, dtype=torch.float64)


@each
@spaced
def test_equal_steps_of_what_the_spacing_says(schedule: Schedule, spacing: Spacing) -> None:
    t, logsnr = point(schedule, spacing, GRID)
    walked = {"t": t, "logsnr": logsnr, "tau": tau_from_logsnr(logsnr)}[spacing]
    steps = walked.diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-9, atol=1e-12)
    assert torch.allclose(schedule(t), logsnr, rtol=0, atol=1e-8)
    assert (logsnr[-1].item(), logsnr[0].item()) == pytest.approx(ends_of(schedule), abs=1e-9)
    assert (t[-1].item(), t[0].item()) == pytest.approx((1.0, 0.0), abs=1e-9)


@each
@spaced
def test_positions_of_points(schedule: Schedule, spacing: Spacing) -> None:
    t, _ = point(schedule, spacing, GRID)
    assert torch.allclose(position(schedule, spacing, t), GRID, rtol=0, atol=1e-9)


@each
@spaced
def test_rate_is_the_slope_of_the_position(schedule: Schedule, spacing: Spacing) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    h = 1e-6
    tau_before, tau_after = (tau_from_logsnr(schedule(t + by)) for by in (-h, h))
    before, after = (position(schedule, spacing, t + by) for by in (-h, h))
    slope = (after - before) / (tau_after - tau_before)
    assert torch.allclose(position_per_tau(schedule, spacing, t), slope, rtol=1e-6)


def test_positions_by_hand() -> None:
    """Of a rectified flow λ = 2 log((1-τ)/τ) between ±2: τ from 1/(1+e) to e/(1+e)."""
    schedule, middle = RectifiedFlow(-2.0, 2.0), torch.tensor([0.25], dtype=torch.float64)
    low, high = 1 / (1 + math.e), math.e / (1 + math.e)
    tau = low + 0.25 * (high - low)
    expected = {
        "t": 2 * math.log((1 - tau) / tau),
        "tau": 2 * math.log((1 - tau) / tau),
        "logsnr": 1.0,
    }
    for spacing in SPACINGS:
        assert point(schedule, spacing, middle)[1].item() == pytest.approx(expected[spacing])


@spaced
def test_another_end(spacing: Spacing) -> None:
    t, logsnr = point(Cosine(), spacing, GRID, data=3.0)
    assert logsnr[0].item() == pytest.approx(3.0, abs=1e-9)
    assert logsnr[-1].item() == pytest.approx(-15.0, abs=1e-9)
    assert torch.allclose(Cosine()(t), logsnr, rtol=0, atol=1e-8)


def test_unknown_spacings() -> None:
    for function in (
        lambda: point(Cosine(), "lambda", GRID),  # type: ignore[arg-type]
        lambda: position(Cosine(), "lambda", GRID),  # type: ignore[arg-type]
        lambda: position_per_tau(Cosine(), "lambda", GRID),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="choose one of t, logsnr, tau"):
            function()
