"""MeanFlow targets against a known flow, and the derivative along the path against differences."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import match_dims, path_scale, tau_from_logsnr
from simple_diffusion.diffusion.objectives import Batch, Denoising, MeanFlow
from simple_diffusion.diffusion.objectives.tangents import along_path, velocity_and_derivative
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction, convert, diffuse
from simple_diffusion.diffusion.schedules import (
    Cosine,
    Interpolated,
    RectifiedFlow,
    Schedule,
    Shifted,
)
from simple_diffusion.diffusion.spacing import SPACINGS, Spacing
from simple_diffusion.diffusion.step_grid import StepGrid
from simple_diffusion.models.uvit import UViT
from tests.diffusion.objectives.linear_gaussian import ExactNetwork, draw, expected_pair

COUNT = 24
INVERTIBLE = [Cosine(), RectifiedFlow(), Shifted(Cosine(), 128, 64)]
SCHEDULES = [*INVERTIBLE, Interpolated(Cosine(), 64, 32, 64)]


def make_batch(schedule: Schedule, spacing: Spacing) -> tuple[StepGrid, Batch]:
    """Images whose targets are their own expectations, at the later of two times."""
    grid = StepGrid(schedule, spacing, 128)
    random = np.random.default_rng(0)
    t, place = torch.as_tensor(random.uniform(0.05, 0.95, COUNT)), random.uniform(0.05, 0.95, COUNT)
    later = torch.maximum(t, torch.as_tensor(place))
    x0, eps = expected_pair(grid, grid.position(later), *draw(COUNT))
    return grid, Batch(x0, eps, t, None, np.zeros(COUNT), place)


@pytest.mark.parametrize(("schedule", "spacing"), list(product(INVERTIBLE, SPACINGS)))
def test_the_exact_network_is_a_fixed_point(schedule: Schedule, spacing: Spacing) -> None:
    grid, batch = make_batch(schedule, spacing)
    exact = ExactNetwork(grid)
    asked = MeanFlow(Denoising(schedule, prediction="u"), grid).targets(batch, exact)
    logsnr = grid.logsnr(asked.s)
    own = exact(diffuse(batch.x0, batch.eps, logsnr), logsnr, None, asked.step)
    torch.testing.assert_close(asked.velocity, own, rtol=0, atol=1e-8)


def test_positions_are_those_of_the_two_times() -> None:
    grid, batch = make_batch(Cosine(), "t")
    asked = MeanFlow(Denoising(Cosine()), grid).targets(batch, ExactNetwork(grid, "v"))
    assert batch.place is not None
    for s, step, *times in zip(
        asked.s.tolist(), asked.step.tolist(), batch.t.tolist(), batch.place, strict=True
    ):
        assert s == pytest.approx(max(times))
        assert step == pytest.approx(abs(times[0] - times[1]))


def test_adaptive_weight() -> None:
    grid, batch = make_batch(Cosine(), "t")
    objective = MeanFlow(Denoising(Cosine()), grid, adaptive_power=0.5, adaptive_offset=0.25)
    asked = objective.targets(batch, ExactNetwork(grid, "v"))
    mse = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert asked.weigh(mse).tolist() == pytest.approx([2.0, 1 / 1.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"adaptive_power": -1.0}, "adaptive_power"), ({"adaptive_offset": 0.0}, "adaptive_offset")],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanFlow(Denoising(Cosine()), StepGrid(Cosine(), "t", 128), **options)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_points_move_along_the_path(schedule: Schedule) -> None:
    """dz/dτ and dλ/dτ against differences of y + h u at τ + h."""
    x0, eps = draw(COUNT)
    logsnr = schedule(torch.linspace(0.05, 0.95, COUNT, dtype=torch.float64))
    tau = tau_from_logsnr(logsnr)
    z = diffuse(x0, eps, logsnr)
    dz, dlogsnr = along_path(z, logsnr, eps - x0)

    def there(h: Tensor) -> tuple[Tensor, Tensor]:
        at = tau + h
        y = z / match_dims(path_scale(logsnr), z) + match_dims(h, z) * (eps - x0)
        level = 2.0 * torch.log((1.0 - at) / at)
        return y * match_dims(path_scale(level), y), level

    h = 1e-5 * tau * (1 - tau)
    (z_after, level_after), (z_before, level_before) = there(h), there(-h)
    torch.testing.assert_close(
        dz, (z_after - z_before) / match_dims(2 * h, z), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        dlogsnr, (level_after - level_before) / (2 * h), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_derivative_of_the_backbone_equals_differences(kind: Prediction, positions: str) -> None:
    torch.manual_seed(0)
    network = UViT(
        image_size=8,
        patch_size=2,
        channels=[8, 16],
        blocks=[1],
        depth=2,
        head_dim=8,
        positions=positions,
        num_classes=3,
        condition_width=16,
        step_condition=True,
    ).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.requires_grad_(False)
    x0, eps = draw(4, shape=(3, 8, 8))
    labels = torch.tensor([0, 3, 1, 2])
    at = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64)
    logsnr, step = Cosine()(at), 0.5 * at
    z = diffuse(x0, eps, logsnr)
    dz, dlogsnr = along_path(z, logsnr, eps - x0)
    dstep = torch.tensor([1.0, 0.7, 0.3, 1.2], dtype=torch.float64)
    value, derivative = velocity_and_derivative(
        network, kind, (z, logsnr, step), labels, (dz, dlogsnr, dstep)
    )

    def velocity(h: float) -> Tensor:
        levels, moved = logsnr + h * dlogsnr, z + h * dz
        return convert(network(moved, levels, labels, step + h * dstep), moved, levels, kind, "u")

    torch.testing.assert_close(value, velocity(0.0), rtol=1e-9, atol=1e-9)
    h = 1e-5
    differences = (velocity(h) - velocity(-h)) / (2 * h)
    torch.testing.assert_close(derivative, differences, rtol=1e-5, atol=1e-6)
    assert derivative.abs().max() > 0.1
