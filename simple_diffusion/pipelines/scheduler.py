"""The noise schedule and the defaults of sampling as a diffusers scheduler."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from simple_diffusion.diffusion.few_step_sampler import FEW_STEP, StepRule, sampler_named
from simple_diffusion.diffusion.objectives import FewStep
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction
from simple_diffusion.diffusion.samplers import SAMPLERS, Sampler
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.spacing import SPACINGS, Spacing
from simple_diffusion.diffusion.step_grid import StepGrid
from simple_diffusion.pipelines.schedule_config import schedule_from_dict, schedule_to_dict

# diffusers asks the module that defines a part for the name SchedulerMixin, so it is imported so.

Interval = Sequence[float | None]  # (lowest λ, highest λ), None for an open end


class PixelScheduler(SchedulerMixin, ConfigMixin):
    """What sampling needs to know of a network's training, and how it samples by default.

    Unlike the schedulers of diffusers it has no `step`: samplers are whole loops here
    (`diffusion.samplers`), chosen by name when a pipeline is called.

    Args:
        schedule: the training's noise schedule, as `schedule_to_dict` gives it.
        prediction_type: what the network predicts: eps, x0, v or u.
        sampler: default sampler.
        num_inference_steps: default number of steps.
        spacing: in what the steps are even by default: t, logsnr or tau.
        guidance_scale: default guidance; 1 is the conditional model.
        guidance_interval: default (lowest, highest) λ between which guidance applies, None for an
            open end. (JSON has no infinity.)
        few_step: what the network was trained to do in few steps: spacing, base_steps, guidance,
            to_data and dyadic, as in `diffusion.objectives.FewStep`; None for a plain denoiser.

    Attributes:
        schedule: t -> λ.
        step_rule: the same for samplers.

    Raises:
        ValueError: an unknown name, a refused value, or a malformed schedule.
    """

    @register_to_config
    def __init__(
        self,
        schedule: Mapping[str, Any],
        prediction_type: str = "v",
        sampler: str = "dpm++2m",
        num_inference_steps: int = 50,
        spacing: str = "logsnr",
        guidance_scale: float = 1.0,
        guidance_interval: Interval = (None, None),
        few_step: Mapping[str, Any] | None = None,
    ) -> None:
        self.schedule = schedule_from_dict(schedule)
        self.step_rule = _step_rule(self.schedule, few_step)
        one_of("prediction_type", prediction_type, PREDICTIONS)
        self.sampler_named(sampler)
        one_of("spacing", spacing, SPACINGS)
        open_interval(guidance_interval)

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        prediction: Prediction,
        *,
        sampler: str,
        steps: int,
        spacing: Spacing,
        guidance: float,
        guidance_interval: tuple[float, float],
        few_step: FewStep | None = None,
    ) -> "PixelScheduler":
        """The scheduler of a trained network; the names are those of `diffusion.generate`."""
        return cls(
            schedule=schedule_to_dict(schedule),
            prediction_type=prediction,
            sampler=sampler,
            num_inference_steps=steps,
            spacing=spacing,
            guidance_scale=guidance,
            guidance_interval=[x if math.isfinite(x) else None for x in guidance_interval],
            few_step=few_step and _described(few_step),
        )

    def sampler_named(self, name: str) -> Sampler:
        """The sampler of a name.

        Raises:
            ValueError: there is none, or it is `few_step` and the network was not trained for it.
        """
        one_of("sampler", name, (*SAMPLERS, FEW_STEP) if self.step_rule else SAMPLERS)
        return sampler_named(name, self.step_rule)

    def logsnr(self, t: Tensor) -> Tensor:
        """λ(t) of the training's schedule; t in [0, 1], 0 = data, of any shape."""
        return self.schedule(t)


def _described(objective: FewStep) -> dict[str, Any]:
    grid = objective.grid
    return {
        "spacing": grid.spacing,
        "base_steps": grid.base_steps,
        "guidance": objective.guidance,
        "to_data": objective.to_data,
        "dyadic": objective.dyadic,
    }


def _step_rule(schedule: Schedule, given: Mapping[str, Any] | None) -> StepRule | None:
    if given is None:
        return None
    try:
        one_of("few_step.spacing", given["spacing"], SPACINGS)
        grid = StepGrid(schedule, given["spacing"], int(given["base_steps"]))
        float(given["guidance"])
        return StepRule(grid, bool(given["to_data"]), bool(given["dyadic"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"few_step: malformed, {error!r}") from None


def open_interval(interval: Interval) -> tuple[float, float]:
    """(lowest λ, highest λ) with open ends at ±∞.

    Raises:
        ValueError: not two numbers or None.
    """
    if len(interval) != 2 or not all(x is None or isinstance(x, int | float) for x in interval):
        raise ValueError(f"guidance_interval must be (lowest λ, highest λ), not {interval!r}")
    low, high = interval
    return -math.inf if low is None else low, math.inf if high is None else high


def one_of(name: str, value: object, choices: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse a value that is no choice, with a ValueError that names them."""
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
