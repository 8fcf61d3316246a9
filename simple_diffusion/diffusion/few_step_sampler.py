"""Sampling with the steps that a few-step objective has trained."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import Denoiser
from simple_diffusion.diffusion.logsnr import at_least_float32
from simple_diffusion.diffusion.objectives.few_step import FewStep
from simple_diffusion.diffusion.samplers import (
    SAMPLERS,
    Level,
    OnStep,
    Sampler,
    ddim,
    grid,
    noise_like,
)
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.spacing import Spacing
from simple_diffusion.diffusion.step_grid import StepGrid

FEW_STEP = "few_step"  # its name beside those in `samplers.SAMPLERS`


class StepRule(NamedTuple):
    """What sampling must know of a few-step objective; see `FewStep` for all but the grid."""

    grid: StepGrid
    to_data: bool
    dyadic: bool

    @classmethod
    def of(cls, objective: FewStep) -> "StepRule":
        """The rule of an objective."""
        return cls(objective.grid, objective.to_data, objective.dyadic)


def few_step_sampler(rule: StepRule) -> Sampler:
    """The sampler of networks that were trained with a few-step objective.

    It has the signature of all samplers (`samplers.Sampler`), draws along the trained spacing only,
    and ends at λ = ∞. With `base_steps` steps or more, each is a plain one of Euler's method with
    the denoiser. With fewer, the network is told the step; average velocities carry on from where
    they lead, and a consistency network's image is noised again to the next level.

    The sampler raises ValueError for another spacing or end, and for a number of steps that was not
    trained.
    """

    def few_step(
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
        _check(rule, steps, spacing, end)
        size = rule.grid.condition(1.0 / steps)
        if not rule.to_data or not size:

            def told(z: Tensor, t: float, step: float) -> Tensor:
                return denoise(z, t, size)

            return ddim(told, z, schedule, steps, spacing=spacing, on_step=on_step)
        levels = grid(schedule, steps, spacing)
        z = at_least_float32(z)
        for number, after in enumerate(levels[1:], start=1):
            now = levels[number - 1]
            x0 = denoise(z, now.t, 1.0 - (number - 1) / steps)
            z = _noised(x0, after, generators)
            if on_step is not None:
                on_step(number)
        return z

    return few_step


def sampler_named(name: str, rule: StepRule | None = None) -> Sampler:
    """A sampler by its name, `few_step` among them.

    Raises:
        ValueError: there is none of this name, or `few_step` without a rule.
    """
    if name == FEW_STEP:
        if rule is None:
            raise ValueError(f"sampler {FEW_STEP} is for networks with a few-step objective")
        return few_step_sampler(rule)
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is not one of {', '.join([*SAMPLERS, FEW_STEP])}")
    return SAMPLERS[name]


def _noised(x0: Tensor, level: Level, generators: Sequence[torch.Generator] | None) -> Tensor:
    if level.sigma == 0.0:
        return x0
    return level.alpha * x0 + level.sigma * noise_like(x0, generators)


def _check(rule: StepRule, steps: int, spacing: Spacing, end: float) -> None:
    trained = rule.grid
    if spacing != trained.spacing:
        raise ValueError(
            f"few_step: the network's steps are even in {trained.spacing}, not in {spacing}; "
            f"use the spacing {trained.spacing}, or another sampler"
        )
    if math.isfinite(end):
        raise ValueError("few_step ends on images; it cannot stop at an `end`")
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, got {steps}")
    if rule.dyadic:
        trained.check_dyadic(steps)
