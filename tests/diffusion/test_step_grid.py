"""Where the steps of few-step networks fall, and which grids are refused."""

import re

import pytest
import torch

from simple_diffusion.diffusion.schedules import Cosine, Interpolated, RectifiedFlow, Shifted
from simple_diffusion.diffusion.step_grid import COARSEST_TAU, StepGrid


def test_tau_ends_on_the_image_and_begins_where_the_schedule_does() -> None:
    grid = StepGrid(RectifiedFlow(-6.0, 8.0), "t", 64)
    tau = grid.tau(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    assert tau[2] == 0.0
    assert tau[0].item() == pytest.approx(1 / (1 + torch.exp(torch.tensor(-3.0)).item()), rel=1e-6)
    assert 0.0 < tau[1] < tau[0]


def test_the_plain_shift_at_512px_is_refused_with_what_would_do() -> None:
    """The last of its 128 steps begins at τ = 0.093 (reference 64)."""
    schedule = Shifted(Cosine(), 512, 64)
    with pytest.raises(ValueError, match=r"τ = 0\.093 covers 0\.093") as refused:
        StepGrid(schedule, "t", 128)
    message = str(refused.value)
    for spacing in ("logsnr", "tau"):
        assert spacing in message
        StepGrid(schedule, spacing, 128)
    count = re.search(r"use (\d+) base steps", message)
    assert count is not None
    StepGrid(schedule, "t", int(count[1]))
    with pytest.raises(ValueError, match="covers"):
        StepGrid(schedule, "t", int(count[1]) // 2)
    assert "interpolated" in message
    StepGrid(Interpolated(Cosine(), 512, 32, 512), "t", 128)


def test_a_grid_of_equal_tau_is_refused_below_twenty_steps() -> None:
    with pytest.raises(ValueError, match="base step"):
        StepGrid(Cosine(), "tau", 16)
    assert 1 / 16 > COARSEST_TAU > 1 / 32
    StepGrid(Cosine(), "tau", 32)


@pytest.mark.parametrize("count", [0, 1, 3, 96, -8])
def test_powers_of_two(count: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        StepGrid(Cosine(), "t", count)


def test_what_the_network_is_told() -> None:
    grid = StepGrid(Cosine(), "t", 128)
    assert grid.doublings == 7
    assert [grid.condition(1 / n) for n in (1, 4, 64, 128, 256)] == [1.0, 0.25, 1 / 64, 0.0, 0.0]
    assert grid.condition(1 / 100) == pytest.approx(0.01)
