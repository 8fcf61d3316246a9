"""Consistency targets against a known flow, and what is exact at the end of the path."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import match_dims
from simple_diffusion.diffusion.objectives import (
    Batch,
    ContinuousConsistency,
    Denoising,
    DiscreteConsistency,
)
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction, diffuse
from simple_diffusion.diffusion.schedules import (
    Cosine,
    Interpolated,
    RectifiedFlow,
    Schedule,
    Shifted,
)
from simple_diffusion.diffusion.spacing import SPACINGS, Spacing
from simple_diffusion.diffusion.step_grid import StepGrid
from tests.diffusion.objectives.linear_gaussian import ExactNetwork, draw, expected_pair

COUNT = 24
SCHEDULES = [
    Cosine(),
    RectifiedFlow(),
    Shifted(Cosine(), 128, 64),
    Interpolated(Cosine(), 64, 32, 64),
]
CASES = list(product(SCHEDULES, SPACINGS))
TIMES = torch.linspace(0.03, 0.97, COUNT, dtype=torch.float64)


def batch_at(grid: StepGrid, s: Tensor, t: Tensor, images_seen: int = 0) -> Batch:
    """Images whose targets are their own expectations, at positions s."""
    x0, eps = expected_pair(grid, s, *draw(COUNT))
    zeros = np.zeros(COUNT)
    return Batch(x0, eps, t, None, zeros, zeros, images_seen)


@pytest.mark.parametrize(("schedule", "spacing"), CASES)
def test_continuous_the_exact_network_has_no_tangent(schedule: Schedule, spacing: Spacing) -> None:
    grid = StepGrid(schedule, spacing, 128)
    objective = ContinuousConsistency(Denoising(schedule, prediction="u"), grid)
    batch, exact = batch_at(grid, grid.position(TIMES), TIMES), ExactNetwork(grid)
    asked = objective.targets(batch, exact)
    assert torch.equal(asked.s, asked.step)
    logsnr = grid.logsnr(asked.s)
    own = exact(diffuse(batch.x0, batch.eps, logsnr), logsnr, None, asked.step)
    torch.testing.assert_close(asked.velocity, own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_continuous_tangent_of_a_network_that_is_off(kind: Prediction) -> None:
    """ū + b for a constant b: g = -b, normalised to -b/(|b| + c); by hand."""
    grid = StepGrid(Cosine(), "t", 128)
    denoising = Denoising(Cosine(), prediction=kind)
    objective = ContinuousConsistency(denoising, grid, tangent_offset=0.2)
    batch = batch_at(grid, TIMES, TIMES)
    asked = objective.targets(batch, ExactNetwork(grid, kind, offset=0.3))
    exact = ExactNetwork(grid)
    logsnr = grid.logsnr(asked.s)
    own = exact(diffuse(batch.x0, batch.eps, logsnr), logsnr, None, asked.step) + 0.3
    torch.testing.assert_close(asked.velocity, own - 0.3 / 0.5, rtol=0, atol=1e-5)


def test_continuous_warms_up_from_flow_matching() -> None:
    grid = StepGrid(Cosine(), "t", 128)
    objective = ContinuousConsistency(
        Denoising(Cosine(), prediction="u"), grid, warmup_images=100, tangent_offset=0.1
    )
    exact = ExactNetwork(grid)

    def target(images_seen: int) -> Tensor:
        return objective.targets(batch_at(grid, TIMES, TIMES, images_seen), exact).velocity

    batch = batch_at(grid, TIMES, TIMES)
    logsnr = grid.logsnr(TIMES)
    own = exact(diffuse(batch.x0, batch.eps, logsnr), logsnr, None, TIMES)
    tangent = batch.eps - batch.x0 - own  # without the derivative: towards the plain velocity
    size = tangent.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(target(0), own + tangent / (size + 0.1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target(100), own, rtol=0, atol=1e-6)
    torch.testing.assert_close(target(10_000), own, rtol=0, atol=1e-6)
    assert (target(50) - own).abs().max() > 1e-3


@pytest.mark.parametrize(("schedule", "spacing"), CASES)
def test_discrete_the_exact_network_is_nearly_a_fixed_point(
    schedule: Schedule, spacing: Spacing
) -> None:
    """A pair of points lies on a chord of the path, so the error falls with the intervals."""
    grid = StepGrid(schedule, spacing, 128)
    worst = []
    for intervals in (64, 1024):
        objective = DiscreteConsistency(
            Denoising(schedule, prediction="u"), grid, intervals=intervals
        )
        s = (grid.position(TIMES) * intervals).ceil().clamp(1, intervals) / intervals
        batch, exact = batch_at(grid, s, TIMES), ExactNetwork(grid)
        asked = objective.targets(batch, exact)
        torch.testing.assert_close(asked.s, s, rtol=0, atol=1e-12)
        logsnr = grid.logsnr(s)
        z = diffuse(batch.x0, batch.eps, logsnr)
        apart = (asked.velocity - exact(z, logsnr, None, asked.step)).flatten(1)
        # what images outside of [-1, 1] are clipped to is no part of this
        y_end = z / match_dims((grid.tau(s) ** 2 + (1 - grid.tau(s)) ** 2) ** -0.5, z)
        image = y_end - match_dims(grid.tau(s), z) * exact(z, logsnr, None, asked.step)
        inside = (image.abs() < 0.9).flatten(1).all(1)
        # where images are as good as known, what is left is the division by τ
        inside &= grid.tau(s) > 0.1
        assert inside.sum() > 5
        worst.append(apart[inside].abs().max().item())
    assert worst[1] < worst[0] / 8
    assert worst[1] < 2e-2


def test_discrete_the_first_point_leads_to_the_image_itself() -> None:
    """f(x, 0) = x, with no network between."""
    grid = StepGrid(Cosine(), "t", 128)
    objective = DiscreteConsistency(Denoising(Cosine(), prediction="u"), grid, intervals=32)
    x0, eps = draw(COUNT)
    t = torch.full((COUNT,), 0.01, dtype=torch.float64)
    batch = Batch(x0.clamp(-1, 1), eps, t, None, np.zeros(COUNT), np.zeros(COUNT))
    asked = objective.targets(batch, lambda z, *_: torch.full_like(z, 1e3))
    assert asked.s.unique().tolist() == [1 / 32]
    tau = match_dims(grid.tau(asked.s), x0)
    y = (1 - tau) * batch.x0 + tau * eps
    torch.testing.assert_close(y - tau * asked.velocity, batch.x0, rtol=0, atol=1e-12)


def test_discrete_weight_is_that_of_a_pseudo_huber_distance_of_images() -> None:
    grid = StepGrid(Cosine(), "t", 128)
    objective = DiscreteConsistency(
        Denoising(Cosine(), prediction="u"), grid, intervals=16, huber=0.03
    )
    x0, eps = draw(COUNT)
    batch = Batch(x0, eps, TIMES, None, np.zeros(COUNT), np.zeros(COUNT))
    asked = objective.targets(batch, ExactNetwork(grid))
    tau, before = grid.tau(asked.s), grid.tau(asked.s - 1 / 16)
    error = torch.linspace(0.01, 2.0, COUNT, dtype=torch.float64, requires_grad=True)
    assert objective.loss == "x0"
    distance = (error.square() + 0.03**2).sqrt() / (tau - before)
    (slope,) = torch.autograd.grad(distance.sum(), error)
    weight = asked.weigh(error.detach().square())
    torch.testing.assert_close(weight * error.detach(), slope, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DiscreteConsistency, {"intervals": 1}, "intervals"),
        (DiscreteConsistency, {"huber": 0.0}, "huber"),
        (ContinuousConsistency, {"warmup_images": -1}, "warmup_images"),
        (ContinuousConsistency, {"tangent_offset": 0.0}, "tangent_offset"),
    ],
)
def test_values_out_of_range(kind: type, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(Denoising(Cosine()), StepGrid(Cosine(), "t", 128), **options)
