"""The part of a run's config about noise: schedules, weights of noise levels, and how t is drawn.

Choices with a `type` key each have their own fields.
"""

from dataclasses import dataclass, field

import draccus

from simple_diffusion.diffusion import schedules, timesteps, weighting


@dataclass(frozen=True)
class ScheduleConfig(draccus.ChoiceRegistry):
    """Base of the schedules; `type` chooses one."""

    def build(self, image_size: int) -> schedules.Schedule:
        """The schedule for images of this side."""
        raise TypeError("schedule needs a type")


@ScheduleConfig.register_subclass("cosine")
@dataclass(frozen=True)
class CosineConfig(ScheduleConfig):
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def build(self, image_size: int) -> schedules.Schedule:
        return schedules.Cosine(self.logsnr_min, self.logsnr_max)


@ScheduleConfig.register_subclass("rectified_flow")
@dataclass(frozen=True)
class RectifiedFlowConfig(ScheduleConfig):
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def build(self, image_size: int) -> schedules.Schedule:
        return schedules.RectifiedFlow(self.logsnr_min, self.logsnr_max)


@ScheduleConfig.register_subclass("linear_beta")
@dataclass(frozen=True)
class LinearBetaConfig(ScheduleConfig):
    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    logsnr_max: float = 15.0

    def build(self, image_size: int) -> schedules.Schedule:
        return schedules.LinearBeta(self.beta_start, self.beta_end, self.steps, self.logsnr_max)


@ScheduleConfig.register_subclass("shifted")
@dataclass(frozen=True)
class ShiftedConfig(ScheduleConfig):
    base: ScheduleConfig = field(default_factory=CosineConfig)
    reference: int = 64

    def build(self, image_size: int) -> schedules.Schedule:
        return schedules.Shifted(self.base.build(image_size), image_size, self.reference)


@ScheduleConfig.register_subclass("interpolated")
@dataclass(frozen=True)
class InterpolatedConfig(ScheduleConfig):
    """`high` null is the image's own side: no shift at the data end."""

    base: ScheduleConfig = field(default_factory=CosineConfig)
    low: int = 32
    high: int | None = None

    def build(self, image_size: int) -> schedules.Schedule:
        high = image_size if self.high is None else self.high
        return schedules.Interpolated(self.base.build(image_size), image_size, self.low, high)


@dataclass(frozen=True)
class WeightingConfig(draccus.ChoiceRegistry):
    """Base of the loss weightings; `type` chooses one."""

    def build(self) -> weighting.Weighting:
        raise TypeError("weighting needs a type")


@WeightingConfig.register_subclass("uniform")
@dataclass(frozen=True)
class UniformConfig(WeightingConfig):
    def build(self) -> weighting.Weighting:
        return weighting.Uniform()


@WeightingConfig.register_subclass("sigmoid")
@dataclass(frozen=True)
class SigmoidConfig(WeightingConfig):
    bias: float = 0.0

    def build(self) -> weighting.Weighting:
        return weighting.Sigmoid(self.bias)


@WeightingConfig.register_subclass("min_snr")
@dataclass(frozen=True)
class MinSNRConfig(WeightingConfig):
    gamma: float = 5.0

    def build(self) -> weighting.Weighting:
        return weighting.MinSNR(self.gamma)


@dataclass(frozen=True)
class TimesConfig(draccus.ChoiceRegistry):
    """Base of the distributions of t; `type` chooses one."""

    def build(self) -> timesteps.TimeDistribution:
        raise TypeError("times needs a type")


@TimesConfig.register_subclass("uniform")
@dataclass(frozen=True)
class UniformTimeConfig(TimesConfig):
    def build(self) -> timesteps.TimeDistribution:
        return timesteps.UniformTime()


@TimesConfig.register_subclass("logit_normal")
@dataclass(frozen=True)
class LogitNormalConfig(TimesConfig):
    mean: float = 0.0
    std: float = 1.0

    def build(self) -> timesteps.TimeDistribution:
        return timesteps.LogitNormal(self.mean, self.std)
