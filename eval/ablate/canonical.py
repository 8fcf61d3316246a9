"""Configs that say the same in different words, brought to one form, so that they run once."""

from dataclasses import replace

from simple_diffusion.config import RunConfig
from simple_diffusion.config_noise import InterpolatedConfig, ScheduleConfig, ShiftedConfig


def canonical(config: RunConfig) -> RunConfig:
    """The plainest config that trains the same network in the same way.

    A shift to the image's own size is no shift; between two equal shifts there is one; a multiscale
    loss that starts at the image's size has one scale; a dropout of 0 has no resolution.
    """
    size = config.data.image_size
    objective, model = config.objective, config.model
    if objective.multiscale_from == size:
        objective = replace(objective, multiscale_from=None)
    if model.dropout == 0.0:
        model = replace(model, dropout_resolution=None)
    schedule = canonical_schedule(config.schedule, size)
    return replace(config, schedule=schedule, objective=objective, model=model)


def canonical_schedule(schedule: ScheduleConfig, image_size: int) -> ScheduleConfig:
    """The plainest schedule with the same λ(t) for images of this side."""
    if isinstance(schedule, InterpolatedConfig):
        base = canonical_schedule(schedule.base, image_size)
        high = image_size if schedule.high is None else schedule.high
        if schedule.low != high:
            return replace(schedule, base=base, high=high)
        schedule = ShiftedConfig(base=base, reference=schedule.low)
    if isinstance(schedule, ShiftedConfig):
        base = canonical_schedule(schedule.base, image_size)
        return base if schedule.reference == image_size else replace(schedule, base=base)
    return schedule
