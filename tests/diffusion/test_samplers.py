"""Samplers: the grid, exact answers for a perfect denoiser, and what a caller may rely on."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import denoiser
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction, convert
from simple_diffusion.diffusion.randomness import generators, normals
from simple_diffusion.diffusion.samplers import (
    SAMPLERS,
    SPACINGS,
    Spacing,
    ddim,
    ddpm,
    euler,
    grid,
    heun,
)
from simple_diffusion.diffusion.schedules import (
    Cosine,
    Interpolated,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Shifted,
)

SCHEDULES: dict[str, Schedule] = {
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "linear": LinearBeta(),
    "shifted_1024": Shifted(Cosine(), 1024, 64),
    "interpolated_512": Interpolated(Cosine(), 512, 32, 512),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
each_sampler = pytest.mark.parametrize("name", SAMPLERS)
each_spacing = pytest.mark.parametrize("spacing", SPACINGS)
CPU = torch.device("cpu")


def scales(logsnr: float) -> tuple[float, float]:
    return 1.0 / math.sqrt(1.0 + math.exp(-logsnr)), 1.0 / math.sqrt(1.0 + math.exp(logsnr))


def logsnr_at(schedule: Schedule, t: float) -> float:
    return float(schedule(torch.tensor(t, dtype=torch.float64)))


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(x0, z): four images in [-1, 1] and the noise to start from."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 4, 4, generator=generator, dtype=torch.float64) * 2.0 - 1.0
    z = torch.randn(4, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x0.to(dtype), z.to(dtype)


def soft(z: Tensor, t: float, step: float) -> Tensor:
    """A denoiser that depends smoothly on all it is given, pixel by pixel."""
    return torch.tanh(z * (1.2 - t)) + 0.1 * t


# --- the grid


@each_schedule
@each_spacing
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_grid_is_even_and_ends_at_infinity(
    schedule: Schedule, spacing: Spacing, steps: int
) -> None:
    levels = grid(schedule, steps, spacing)
    assert len(levels) == steps + 1
    assert levels[0].t == pytest.approx(1.0, abs=1e-9)
    assert levels[0].logsnr == pytest.approx(logsnr_at(schedule, 1.0), abs=1e-9)
    last = levels[-1]
    assert (last.t, last.logsnr, last.alpha, last.sigma, last.tau) == (0.0, math.inf, 1.0, 0.0, 0.0)

    places = {
        "t": [level.t for level in levels[:-1]],
        "logsnr": [level.logsnr for level in levels[:-1]],
        "tau": [1.0 / (1.0 + math.exp(0.5 * level.logsnr)) for level in levels[:-1]],
    }[spacing]
    first, final = (logsnr_at(schedule, t) for t in (1.0, 0.0))
    ends = {
        "t": (1.0, 0.0),
        "logsnr": (first, final),
        "tau": (1.0 / (1.0 + math.exp(0.5 * first)), 1.0 / (1.0 + math.exp(0.5 * final))),
    }[spacing]
    np.testing.assert_allclose(places, np.linspace(*ends, steps + 1)[:-1], rtol=0, atol=1e-9)


@each_schedule
@each_spacing
def test_grid_levels_are_consistent(schedule: Schedule, spacing: Spacing) -> None:
    levels = grid(schedule, 20, spacing, end=2.0)
    assert levels[-1].logsnr == pytest.approx(2.0, abs=1e-9)
    for level in levels:
        assert logsnr_at(schedule, level.t) == pytest.approx(level.logsnr, abs=1e-6)
        assert (level.alpha, level.sigma) == pytest.approx(scales(level.logsnr), rel=1e-12, abs=0.0)
        assert level.tau == pytest.approx(
            1.0 / (1.0 + math.exp(0.5 * level.logsnr)), rel=1e-9, abs=0.0
        )
    assert all(now.t > after.t and now.logsnr < after.logsnr for now, after in pairwise(levels))


def test_grid_may_end_at_the_end_of_the_schedule() -> None:
    last = grid(Cosine(-12.0, 6.0), 3, "logsnr", end=6.0)[-1]
    assert last.logsnr == 6.0
    assert last.t == pytest.approx(0.0, abs=1e-12)


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step, got 0"):
        grid(Cosine(), 0)
    with pytest.raises(ValueError, match="unknown spacing 'karras'; choose one of t, logsnr, tau"):
        grid(Cosine(), 4, "karras")  # type: ignore[arg-type]
    for end in (-15.0, -20.0, 15.1):
        with pytest.raises(ValueError, match=rf"end={end} must lie in \(-15.000, 15.000\]"):
            grid(Cosine(), 4, end=end)


# --- a perfect denoiser


@each_sampler
@each_schedule
@each_spacing
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_perfect_network_returns_the_image(
    name: str, schedule: Schedule, spacing: Spacing, steps: int
) -> None:
    """Through v, as a trained network would answer: x0_hat is recomputed from z at every step."""
    x0, z = images()

    def network(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        v = convert(x0.double(), z.double(), logsnr.double(), "x0", "v")
        return v.float()

    x = SAMPLERS[name](denoiser(network, schedule, "v"), z, schedule, steps, spacing=spacing)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, x0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm++2m"])
@each_spacing
@each_schedule
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_perfect_denoiser_keeps_the_noise(
    name: str, schedule: Schedule, spacing: Spacing, steps: int
) -> None:
    """Stopped at λ = 2, z is still on the line through x0 and the noise it started from."""
    x0, z = images(torch.float64)
    alpha, sigma = scales(logsnr_at(schedule, 1.0))
    eps = (z - alpha * x0) / sigma
    moved = SAMPLERS[name](lambda z, t, step: x0, z, schedule, steps, spacing=spacing, end=2.0)
    alpha, sigma = scales(2.0)
    torch.testing.assert_close(moved, alpha * x0 + sigma * eps, rtol=0, atol=1e-9)


@each_sampler
@pytest.mark.parametrize("steps", [1, 5])
def test_the_last_step_returns_the_last_estimate(name: str, steps: int) -> None:
    """Whatever happened before, and to the last bit."""
    estimates: list[Tensor] = []

    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        estimates.append(soft(z, t, step))
        return estimates[-1]

    x = SAMPLERS[name](denoise, images()[1], Cosine(), steps)
    assert torch.equal(x, estimates[-1])


# --- one step, and independent statements of the same method


def step_conditioned(x0: float, z: float, now: float, after: float) -> tuple[float, float, float]:
    """Mean and variance of z_s given z_t and x0 from their joint covariance, and Var(z_t | z_s)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(now), scales(after)
    ratio = alpha_t / alpha_s
    added = sigma_t**2 - (ratio * sigma_s) ** 2
    covariance, variance_t = ratio * sigma_s**2, (ratio * sigma_s) ** 2 + added
    gain = covariance / variance_t
    return alpha_s * x0 + gain * (z - alpha_t * x0), sigma_s**2 - gain * covariance, added


@pytest.mark.parametrize(("first", "end"), [(-15.0, -2.0), (-3.0, -2.9), (-1.0, 1.0), (-2.0, 5.0)])
def test_ancestral_step_against_joint_gaussian_conditioning(first: float, end: float) -> None:
    x0, z = images(torch.float64)
    schedule = Cosine(first, 15.0)

    def step(seed: int) -> tuple[Tensor, Tensor]:
        each = generators(seed, "ancestral", range(4), CPU)
        moved = ddpm(lambda z, t, step: x0, z, schedule, 1, end=end, generators=each)
        again = generators(seed, "ancestral", range(4), CPU)
        return moved, normals(again, z.shape[1:], torch.float64)

    (one, noise_one), (other, noise_other) = step(0), step(1)
    std = (one - other) / (noise_one - noise_other)
    mean = one - std * noise_one
    for x0_pixel, z_pixel, mean_pixel, std_pixel in zip(
        *(x.flatten().tolist() for x in (x0, z, mean, std)), strict=True
    ):
        expected, lower, upper = step_conditioned(x0_pixel, z_pixel, first, end)
        assert mean_pixel == pytest.approx(expected, abs=1e-10)
        # a fifth of the way from the lower to the upper bound in the logarithm
        assert std_pixel**2 == pytest.approx(lower**0.8 * upper**0.2, rel=1e-8, abs=0.0)


@each_schedule
@each_spacing
def test_ddim_is_euler_on_the_straight_path(schedule: Schedule, spacing: Spacing) -> None:
    """y = z/(α+σ), τ = σ/(α+σ), dy/dτ = u = eps - x0: one pixel, in plain floats."""
    start, steps = 0.7, 12
    levels = grid(schedule, steps, spacing)
    alpha, sigma = scales(levels[0].logsnr)
    y, tau = start / (alpha + sigma), sigma / (alpha + sigma)
    for now, after in pairwise(levels):
        alpha, sigma = scales(now.logsnr)
        z = y * (alpha + sigma)
        x0 = math.tanh(z * (1.2 - now.t)) + 0.1 * now.t
        eps = (z - alpha * x0) / sigma
        next_tau = 0.0
        if math.isfinite(after.logsnr):
            next_tau = 1.0 / (1.0 + math.exp(0.5 * after.logsnr))
        y += (next_tau - tau) * (eps - x0)
        tau = next_tau
    pixel = torch.full((1, 1, 1, 1), start, dtype=torch.float64)
    for sampler in (ddim, euler):
        x = sampler(soft, pixel, schedule, steps, spacing=spacing)
        assert x.item() == pytest.approx(y, abs=1e-9)


def test_dpmpp_2m_by_its_recurrence() -> None:
    """Four uneven steps of one pixel; the first and the last use the plain estimate."""
    schedule, start = Cosine(-10.0, 10.0), -0.4
    levels = grid(schedule, 4)
    z, previous, h_previous = start, None, math.nan
    for now, after in pairwise(levels):
        x0 = math.tanh(z * (1.2 - now.t)) + 0.1 * now.t
        if math.isinf(after.logsnr):
            z = x0
            break
        h = (after.logsnr - now.logsnr) / 2.0
        d = x0 if previous is None else x0 + (x0 - previous) / (2.0 * h_previous / h)
        (_, sigma_t), (alpha_s, sigma_s) = scales(now.logsnr), scales(after.logsnr)
        z = sigma_s / sigma_t * z - alpha_s * (math.exp(-h) - 1.0) * d
        previous, h_previous = x0, h
    sampled = SAMPLERS["dpm++2m"](
        soft, torch.full((1, 1, 1, 1), start, dtype=torch.float64), schedule, 4
    )
    assert sampled.item() == pytest.approx(z, abs=1e-10)


# --- what a caller may rely on


@each_sampler
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_network_calls_and_progress(name: str, steps: int) -> None:
    seen: list[tuple[float, float]] = []
    progress: list[int] = []

    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        seen.append((t, step))
        return soft(z, t, step)

    SAMPLERS[name](denoise, images()[1], Cosine(), steps, on_step=progress.append)
    assert progress == list(range(1, steps + 1))
    assert len(seen) == (2 * steps - 1 if name == "heun" else steps)
    # each step tells the network where it is, and asks for the plain denoised image
    expected = [(1.0 - i / steps, 0.0) for i in range(steps)]
    if name == "heun":  # and looks at where it lands, except at λ = ∞
        landings = [(1.0 - (i + 1) / steps, 0.0) for i in range(steps - 1)]
        expected = [pair for both in zip(expected, landings, strict=False) for pair in both] + [
            expected[-1]
        ]
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-9)


def test_heun_evaluates_both_ends_of_a_finite_last_step() -> None:
    times: list[float] = []

    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        times.append(t)
        return soft(z, t, step)

    heun(denoise, images()[1], Cosine(), 3, end=4.0)
    assert len(times) == 6


@each_sampler
def test_samples_do_not_depend_on_the_batch(name: str) -> None:
    """Image 5 is image 5, alone, in a batch, or on another rank."""

    def draw(positions: Sequence[int]) -> Tensor:
        each = generators(9, "sample", positions, CPU)
        z = normals(each, (3, 4, 4))  # the start, then the steps, from one generator per image
        return SAMPLERS[name](soft, z, Cosine(), 6, generators=each)

    whole = draw(range(8))
    for positions in ([0, 1, 2], [3, 4, 5, 6, 7], [5], [6, 2]):
        assert torch.equal(draw(positions), whole[positions])


def test_ancestral_noise_is_fresh_at_every_step_and_for_every_image() -> None:
    z = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    states: list[Tensor] = []

    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        states.append(z)
        return torch.zeros_like(z)

    ddpm(denoise, z, Cosine(), 20, generators=generators(0, "sample", [0, 1], CPU))
    # with x0_hat = 0 a step multiplies z by a number and adds noise
    first, second = torch.stack(states).reshape(20, 2).T
    assert len(first.unique()) == 20
    assert not torch.isclose(first[1:], second[1:]).any()


def test_ancestral_sampling_without_generators_follows_the_global_one() -> None:
    z = images()[1]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one = ddpm(soft, z, Cosine(), 5)
        other = ddpm(soft, z, Cosine(), 5)
        torch.manual_seed(3)
        assert torch.equal(ddpm(soft, z, Cosine(), 5), one)
    assert not torch.equal(one, other)


def test_a_generator_for_each_image_or_an_error() -> None:
    with pytest.raises(ValueError, match="3 generators for 4 images"):
        ddpm(soft, images()[1], Cosine(), 5, generators=generators(0, "sample", range(3), CPU))


@each_sampler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_of_the_state(name: str, dtype: torch.dtype) -> None:
    """Half precision noise is integrated in float32; float64 stays."""
    seen: set[torch.dtype] = set()

    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        seen.add(z.dtype)
        return soft(z, t, step)

    z = images(dtype)[1]
    before = z.clone()
    x = SAMPLERS[name](denoise, z, Cosine(), 4, generators=generators(0, "x", range(4), CPU))
    assert seen == {x.dtype} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert torch.equal(z, before)  # the caller's noise is not written to


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_samples_the_same_images(prediction: Prediction) -> None:
    """The same denoiser, stated four ways."""
    schedule = Shifted(Cosine(), 256, 64)

    def network(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        x0 = 0.8 * torch.tanh(z + 0.02 * logsnr.reshape(-1, 1, 1, 1))
        return convert(x0, z, logsnr, "x0", prediction)

    z = images(torch.float64)[1]
    x = heun(denoiser(network, schedule, prediction), z, schedule, 10)
    plain = heun(
        lambda z, t, step: 0.8 * torch.tanh(z + 0.02 * logsnr_at(schedule, t)), z, schedule, 10
    )
    torch.testing.assert_close(x, plain, rtol=0, atol=1e-9)
