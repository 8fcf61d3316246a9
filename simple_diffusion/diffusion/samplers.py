"""Samplers: from noise to images along a schedule, all with one signature.

Every sampler ends at λ = ∞, so its last step returns the last estimate of the clean image: stopping
at λ(0) would leave σ(0) of noise in it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import Denoiser
from simple_diffusion.diffusion.logsnr import alpha_sigma, at_least_float32
from simple_diffusion.diffusion.randomness import normals
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.spacing import SPACINGS, Spacing, ends_of, point

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Level:
    """A point of the sampling grid, in double precision."""

    t: float
    logsnr: float
    alpha: float
    sigma: float

    @property
    def tau(self) -> float:
        return self.sigma / (self.alpha + self.sigma)


def grid(
    schedule: Schedule, steps: int, spacing: Spacing = "t", end: float = math.inf
) -> list[Level]:
    """steps + 1 levels from t = 1 down to `end`, evenly spaced in t, λ or τ.

    With `end` = ∞ the levels are those between t = 1 and t = 0, the last one replaced by λ = ∞.

    Raises:
        ValueError: fewer than one step, unknown spacing, or an `end` outside the schedule.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, got {steps}")
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")
    first, last = ends_of(schedule)
    if math.isfinite(end) and not first < end <= last:
        raise ValueError(f"end={end} must lie in ({first:.3f}, {last:.3f}], the schedule's λ")
    positions = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    t, logsnr = point(schedule, spacing, positions, None if math.isinf(end) else end)
    if math.isinf(end):
        logsnr[-1], t[-1] = math.inf, 0.0
    alpha, sigma = alpha_sigma(logsnr)
    return [Level(*values) for values in torch.stack([t, logsnr, alpha, sigma], dim=1).tolist()]


class Sampler(Protocol):
    """Turns noise into images.

    Args:
        denoise: the estimator of the clean image.
        z: standard normal noise, shape (B, C, H, W).
        schedule: maps t to λ.
        steps: number of steps; also the number of network calls; Heun's makes 2·steps, one fewer
            when it ends at λ = ∞.
        spacing: in what the steps are even.
        end: the λ to stop at; ∞ gives images.
        generators: one for each image, for samplers that draw noise; None uses torch's global one.
        on_step: called with the number of steps done, for progress bars.

    Returns:
        Images of the shape of z (for `end` = ∞), in float32 or better.
    """

    def __call__(
        self,
        denoise: Denoiser,
        z: Tensor,
        schedule: Schedule,
        steps: int,
        *,
        spacing: Spacing = "t",
        end: float = math.inf,
        generators: Sequence[torch.Generator] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor: ...


def _sampler(make_step: Callable[..., "Step"]) -> Sampler:
    """Close a step rule into a sampler; grid, loop and precision are the same for all."""

    def run(
        denoise: Denoiser,
        z: Tensor,
        schedule: Schedule,
        steps: int,
        *,
        spacing: Spacing = "t",
        end: float = math.inf,
        generators: Sequence[torch.Generator] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        levels = grid(schedule, steps, spacing, end)
        step = make_step(denoise, generators)
        z = at_least_float32(z)
        for number, (now, after) in enumerate(pairwise(levels), start=1):
            z = step(z, now, after)
            if on_step is not None:
                on_step(number)
        return z

    run.__name__ = make_step.__name__.strip("_")
    run.__doc__ = make_step.__doc__
    return run


Step = Callable[[Tensor, Level, Level], Tensor]


def _toward(z: Tensor, x0: Tensor, now: Level, after: Level) -> Tensor:
    """The DDIM update: z moves along the straight line that keeps eps_hat fixed."""
    pull = -after.alpha * math.expm1(0.5 * (now.logsnr - after.logsnr))
    return (after.sigma / now.sigma) * z + pull * x0


def _ddim(denoise: Denoiser, generators: Sequence[torch.Generator] | None) -> Step:
    """DDIM without noise (Song et al. 2021), which is Euler on the straight path (y, τ)."""

    def step(z: Tensor, now: Level, after: Level) -> Tensor:
        return _toward(z, denoise(z, now.t, 0.0), now, after)

    return step


def _ddpm(denoise: Denoiser, generators: Sequence[torch.Generator] | None) -> Step:
    """Ancestral sampling; log-variance between its bounds by `DDPM_VARIANCE` (Ho et al. 2020)."""

    def step(z: Tensor, now: Level, after: Level) -> Tensor:
        x0 = denoise(z, now.t, 0.0)
        if math.isinf(after.logsnr):
            return x0
        drop = now.logsnr - after.logsnr
        c = -math.expm1(drop)
        mean = math.exp(drop) * (after.alpha / now.alpha) * z + after.alpha * c * x0
        log_sigma = (1.0 - DDPM_VARIANCE) * math.log(after.sigma) + DDPM_VARIANCE * math.log(
            now.sigma
        )
        return mean + math.sqrt(c) * math.exp(log_sigma) * noise_like(z, generators)

    return step


# Share of the upper bound in the log-variance of ancestral steps. Simple diffusion interpolates
# with a share of about 0.2-0.3; the exact figure is known from secondary sources only.
DDPM_VARIANCE = 0.2


def _heun(denoise: Denoiser, generators: Sequence[torch.Generator] | None) -> Step:
    """Heun's second-order method on the straight path; the step to λ = ∞ is Euler's."""

    def step(z: Tensor, now: Level, after: Level) -> Tensor:
        x0 = denoise(z, now.t, 0.0)
        euler = _toward(z, x0, now, after)
        if after.sigma == 0.0:
            return euler
        there = denoise(euler, after.t, 0.0)
        y = z / (now.alpha + now.sigma)
        velocity = (y - x0) / now.tau
        velocity_there = (euler / (after.alpha + after.sigma) - there) / after.tau
        y = y + (after.tau - now.tau) * 0.5 * (velocity + velocity_there)
        return y * (after.alpha + after.sigma)

    return step


def _dpmpp_2m(denoise: Denoiser, generators: Sequence[torch.Generator] | None) -> Step:
    """DPM-Solver++(2M) (Lu et al. 2022); the first step and the step to λ = ∞ are first order."""
    previous: tuple[Tensor, float] | None = None

    def step(z: Tensor, now: Level, after: Level) -> Tensor:
        nonlocal previous
        x0 = denoise(z, now.t, 0.0)
        estimate, h = x0, 0.5 * (after.logsnr - now.logsnr)
        if previous is not None and math.isfinite(h):
            last_x0, last_h = previous
            estimate = x0 + (x0 - last_x0) * (0.5 * h / last_h)
        previous = (x0, h)
        return _toward(z, estimate, now, after)

    return step


def noise_like(z: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Standard normal noise of z's shape and dtype: a row from each image's own generator.

    Raises:
        ValueError: not one generator for each image.
    """
    if generators is None:
        return torch.randn_like(z)
    if len(generators) != z.shape[0]:
        raise ValueError(f"{len(generators)} generators for {z.shape[0]} images; one each needed")
    return normals(generators, z.shape[1:], z.dtype).to(z.device)


ddim = _sampler(_ddim)
euler = ddim
ddpm = _sampler(_ddpm)
heun = _sampler(_heun)
dpmpp_2m = _sampler(_dpmpp_2m)

SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm++2m": dpmpp_2m,
}
