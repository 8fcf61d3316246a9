"""Shortcut targets against a scalar reference, the paper's formula and a known flow."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import match_dims
from simple_diffusion.diffusion.objectives import Batch, Denoising, Shortcut
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction
from simple_diffusion.diffusion.schedules import (
    Cosine,
    Interpolated,
    RectifiedFlow,
    Schedule,
    Shifted,
)
from simple_diffusion.diffusion.spacing import SPACINGS, Spacing
from simple_diffusion.diffusion.step_grid import StepGrid
from tests.diffusion.objectives.linear_gaussian import ExactNetwork, draw

COUNT, SHARE = 56, 0.25

# --- the reference: one float at a time


def cosine(t: float) -> float:
    """λ of the cosine schedule between ±15."""
    low = math.atan(math.exp(-7.5))
    return -2.0 * math.log(math.tan(low + t * (math.pi / 2 - 2 * low)))


def straight(t: float) -> float:
    """λ of the straight path between ±15."""
    low = 1.0 / (1.0 + math.exp(7.5))
    tau = low + t * (1.0 - 2.0 * low)
    return 2.0 * math.log((1.0 - tau) / tau)


def interpolated(t: float) -> float:
    """Between references 32 (noise) and 128 (data) at 128px."""
    return cosine(t) + t * 2.0 * math.log(32 / 128)


REFERENCES: list[tuple[Schedule, Callable[[float], float]]] = [
    (Cosine(), cosine),
    (RectifiedFlow(), straight),
    (Shifted(Cosine(), 128, 64), lambda t: cosine(t) - 2.0 * math.log(2.0)),
    (Interpolated(Cosine(), 128, 32, 128), interpolated),
]


def level_at(schedule: Callable[[float], float], spacing: Spacing, s: float) -> float:
    """λ at a position."""
    noise, data = schedule(1.0), schedule(0.0)
    if spacing == "t":
        return schedule(s)
    if spacing == "logsnr":
        return data + s * (noise - data)
    ends = [1.0 / (1.0 + math.exp(0.5 * level)) for level in (data, noise)]
    tau = ends[0] + s * (ends[1] - ends[0])
    return 2.0 * math.log((1.0 - tau) / tau)


def predict(z: float, level: float, step: float) -> float:
    """A network that heeds all it is told, whatever its output means."""
    return 0.4 * z + 0.2 * math.sin(level / 3.0) + 0.3 * step


def average(kind: Prediction, z: float, level: float, step: float) -> float:
    """Its velocity on the straight path."""
    alpha = 1.0 / math.sqrt(1.0 + math.exp(-level))
    sigma = 1.0 / math.sqrt(1.0 + math.exp(level))
    out = predict(z, level, step)
    if kind == "u":
        return out
    if kind == "x0":
        x0, eps = out, (z - alpha * out) / sigma
    elif kind == "eps":
        x0, eps = (z - sigma * out) / alpha, out
    else:
        x0, eps = alpha * z - sigma * out, sigma * z + alpha * out
    return eps - x0


def reference_target(
    schedule: Callable[[float], float],
    spacing: Spacing,
    kind: Prediction,
    s: float,
    size: float,
    x0: float,
    eps: float,
) -> float:
    """The Δτ-weighted mean of the clipped velocities of two half steps."""

    def tau_at(position: float) -> float:
        if position == 0.0:
            return 0.0
        return 1.0 / (1.0 + math.exp(0.5 * level_at(schedule, spacing, position)))

    def half_step(y: float, position: float) -> float:
        level, tau = level_at(schedule, spacing, position), tau_at(position)
        z = y / math.sqrt(tau**2 + (1.0 - tau) ** 2)
        told = size / 2 if size / 2 > 1 / 128 else 0.0
        image = y - tau * average(kind, z, level, told)
        return (y - min(1.0, max(-1.0, image))) / tau

    start, middle, end = tau_at(s), tau_at(s - size / 2), tau_at(s - size)
    y = (1.0 - start) * x0 + start * eps
    first = half_step(y, s)
    second = half_step(y - (start - middle) * first, s - size / 2)
    return ((start - middle) * first + (middle - end) * second) / (start - end)


# --- the objective


def network(z: Tensor, logsnr: Tensor, labels: Tensor | None, step: Tensor) -> Tensor:
    return 0.4 * z + match_dims(0.2 * torch.sin(logsnr / 3.0) + 0.3 * step, z)


def make_batch(seed: int = 0) -> Batch:
    """Images that all teach larger steps, each size several times."""
    x0, eps = draw(COUNT, seed=seed)
    pick = (np.arange(COUNT) + 0.5) / COUNT * SHARE
    place = np.random.default_rng(seed).random(COUNT)
    return Batch(x0, eps, torch.full((COUNT,), 0.5, dtype=torch.float64), None, pick, place)


@pytest.mark.parametrize(("schedule", "reference"), REFERENCES)
@pytest.mark.parametrize(("spacing", "kind"), list(product(SPACINGS, PREDICTIONS)))
def test_scalar_reference(
    schedule: Schedule,
    reference: Callable[[float], float],
    spacing: Spacing,
    kind: Prediction,
) -> None:
    objective = Shortcut(Denoising(schedule, prediction=kind), StepGrid(schedule, spacing, 128))
    batch = make_batch()
    asked = objective.targets(batch, network)
    for row, (s, size) in enumerate(zip(asked.s.tolist(), asked.step.tolist(), strict=True)):
        for pixel in ((0, 0, 0), (0, 1, 1)):
            expected = reference_target(
                reference,
                spacing,
                kind,
                s,
                size,
                batch.x0[row][pixel].item(),
                batch.eps[row][pixel].item(),
            )
            assert asked.velocity[row][pixel].item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_on_the_straight_path_it_is_the_papers_mean() -> None:
    """Equal steps of τ: the plain mean of the two velocities."""
    schedule = RectifiedFlow()
    objective = Shortcut(Denoising(schedule, prediction="u"), StepGrid(schedule, "tau", 128))
    batch = make_batch()

    def small(z: Tensor, logsnr: Tensor, labels: Tensor | None, step: Tensor) -> Tensor:
        return 0.01 * network(z, logsnr, labels, step) + batch.eps - batch.x0  # nothing is clipped

    asked = objective.targets(batch, small)
    inner = asked.s - asked.step > 1e-9  # a last half step ends on τ = 0, not on the schedule's
    s, size = asked.s, asked.step
    grid = objective.grid
    half = torch.where(size > 2 / 128, size / 2, 0.0)
    tau = match_dims(grid.tau(s), batch.x0)
    y = (1 - tau) * batch.x0 + tau * batch.eps

    def velocity(y: Tensor, s: Tensor) -> Tensor:
        tau = match_dims(grid.tau(s), y)
        return small(y / (tau**2 + (1 - tau) ** 2).sqrt(), grid.logsnr(s), None, half)

    first = velocity(y, s)
    step = match_dims(grid.tau(s) - grid.tau(s - size / 2), y)
    second = velocity(y - step * first, s - size / 2)
    mean = 0.5 * (first + second)
    assert inner.sum() > 20
    torch.testing.assert_close(asked.velocity[inner], mean[inner], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [one for one, _ in REFERENCES])
def test_the_exact_network_is_a_fixed_point(schedule: Schedule, spacing: Spacing) -> None:
    grid = StepGrid(schedule, spacing, 128)
    exact = ExactNetwork(grid)
    batch = make_batch()
    # pixels that the flow leaves within [-1, 1], as images are
    batch = Batch(batch.x0, 0.5 * batch.eps, batch.t, None, batch.pick, batch.place)
    asked = Shortcut(Denoising(schedule, prediction="u"), grid).targets(batch, exact)
    logsnr = grid.logsnr(asked.s)
    tau = match_dims(1 / (1 + torch.exp(0.5 * logsnr)), batch.x0)
    z = ((1 - tau) * batch.x0 + tau * batch.eps) / (tau**2 + (1 - tau) ** 2).sqrt()
    wanted = exact(z, logsnr, None, asked.step)
    larger = asked.step > 2 / 128
    assert larger.sum() == COUNT * 6 // 7
    torch.testing.assert_close(asked.velocity[larger], wanted[larger], rtol=1e-6, atol=1e-6)
    # the smallest are made of base steps, which are Euler's
    torch.testing.assert_close(asked.velocity[~larger], wanted[~larger], rtol=0, atol=0.05)


def test_sizes_and_positions_are_drawn_evenly() -> None:
    objective = Shortcut(Denoising(Cosine()), StepGrid(Cosine(), "t", 128))
    count = 7 * 512
    x0, eps = draw(count, shape=(1, 1, 1))
    pick = (np.arange(count) + 0.5) / count * SHARE
    place = (np.random.default_rng(0).permutation(count) + 0.5) / count
    batch = Batch(x0, eps, x0.flatten(), None, pick, place)
    asked = objective.targets(batch, network)
    sizes, counts = asked.step.unique(return_counts=True)
    assert sizes.tolist() == [2.0**-k for k in range(6, -1, -1)]
    assert counts.tolist() == [512] * 7
    for size in sizes.tolist():
        s = asked.s[asked.step == size]
        multiples = (s / size).round()
        assert torch.allclose(multiples * size, s)
        numbers, each = multiples.unique(return_counts=True)
        assert numbers.tolist() == list(range(1, round(1 / size) + 1))
        assert each.max() - each.min() < 8 * math.sqrt(512 * size) + 2


def test_guidance_is_baked_into_the_smallest_steps_only() -> None:
    """And there into both halves: the teacher is asked without a class for these images alone."""
    grid = StepGrid(Cosine(), "t", 128)
    base = make_batch()
    batch = Batch(base.x0, base.eps, base.t, torch.arange(COUNT) % 3, base.pick, base.place)
    asked_null: list[int] = []

    def teacher(z: Tensor, logsnr: Tensor, labels: Tensor, step: Tensor) -> Tensor:
        asked_null.append(int((labels == 9).sum()))
        return 0.1 * z + match_dims(0.1 * (labels != 9).to(z), z)

    denoising = Denoising(Cosine(), prediction="u")
    plain = Shortcut(denoising, grid).targets(batch, teacher)
    assert not any(asked_null)
    guided = Shortcut(denoising, grid, guidance=3.0, null_label=9).targets(batch, teacher)
    smallest = plain.step == 2 / 128
    assert sum(asked_null) == 2 * int(smallest.sum()) > 0
    same = (plain.velocity == guided.velocity).flatten(1).all(1)
    assert torch.equal(same, ~smallest)
    # 0.1 z + 0.1 with the class and 0.1 z without: guided 0.1 z + 0.3, so 0.2 more
    moved = guided.velocity[smallest] - plain.velocity[smallest]
    assert moved.median().item() == pytest.approx(0.2, abs=2e-3)


def test_guidance_needs_classes() -> None:
    with pytest.raises(ValueError, match="needs a class-conditional network"):
        Shortcut(Denoising(Cosine()), StepGrid(Cosine(), "t", 128), guidance=2.0)


def test_the_intermediate_image_is_clipped_to_the_range_of_images() -> None:
    grid = StepGrid(Cosine(), "t", 128)
    objective = Shortcut(Denoising(Cosine(), prediction="x0"), grid)

    def far(z: Tensor, logsnr: Tensor, labels: Tensor | None, step: Tensor) -> Tensor:
        return torch.full_like(z, 7.0)

    def one(z: Tensor, logsnr: Tensor, labels: Tensor | None, step: Tensor) -> Tensor:
        return torch.ones_like(z)

    batch = make_batch()
    clipped, wanted = (objective.targets(batch, teacher).velocity for teacher in (far, one))
    torch.testing.assert_close(clipped, wanted, rtol=1e-6, atol=1e-6)
