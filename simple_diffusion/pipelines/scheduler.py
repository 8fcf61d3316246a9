"""The noise schedule and the defaults of sampling as a diffusers scheduler."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction
from simple_diffusion.diffusion.samplers import SAMPLERS, Sampler
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.spacing import SPACINGS, Spacing
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

    Attributes:
        schedule: t -> λ.

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
    ) -> None:
        self.schedule = schedule_from_dict(schedule)
        one_of("prediction_type", prediction_type, PREDICTIONS)
        one_of("sampler", sampler, SAMPLERS)
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
        )

    def logsnr(self, t: Tensor) -> Tensor:
        """λ(t) of the training's schedule; t in [0, 1], 0 = data, of any shape."""
        return self.schedule(t)


def sampler_named(name: str) -> Sampler:
    """The sampler of a name.

    Raises:
        ValueError: there is none.
    """
    one_of("sampler", name, SAMPLERS)
    return SAMPLERS[name]


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
