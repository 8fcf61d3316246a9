"""The part of a run's config about sampling in few steps; `type` chooses the objective.

The section `objective` stays what it is: the denoising loss of the images at step size 0, whose
prediction and multiscale loss are the few-step objective's too.
"""

import math
from dataclasses import dataclass
from typing import Any

import draccus

from simple_diffusion.config_checks import require
from simple_diffusion.diffusion.objectives import (
    ContinuousConsistency,
    Denoising,
    DiscreteConsistency,
    FewStep,
    MeanFlow,
    Shortcut,
)
from simple_diffusion.diffusion.prediction import Prediction
from simple_diffusion.diffusion.spacing import Spacing
from simple_diffusion.diffusion.step_grid import StepGrid


@dataclass(frozen=True)
class FewStepConfig(draccus.ChoiceRegistry):
    """Base of the few-step objectives; `type` chooses one."""

    def build(self, denoising: Denoising, null_label: int | None) -> FewStep | None:
        """The objective around the denoising one; None for that alone."""
        raise TypeError("few_step needs a type")


@FewStepConfig.register_subclass("none")
@dataclass(frozen=True)
class NoFewStep(FewStepConfig):
    """Plain denoising."""

    def build(self, denoising: Denoising, null_label: int | None) -> FewStep | None:
        return None


@dataclass(frozen=True)
class StepsConfig(FewStepConfig):
    """What all few-step objectives have; see `objectives.FewStep` and `StepGrid`.

    `loss` is the prediction whose error is measured: u, v or x0; null is x0 for networks that
    predict x0, else u. `guidance` is baked into the
    targets, and so into every sampling of fewer than `base_steps`.
    """

    spacing: Spacing = "t"
    base_steps: int = 128
    share: float = 0.25
    weight: float = 1.0
    loss: Prediction | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require(0.0 < self.share < 1.0, "few_step.share must lie in (0, 1)")
        require(0.0 < self.weight < math.inf, "few_step.weight must be positive and finite")
        require(math.isfinite(self.guidance), "few_step.guidance must be finite")
        require(self.loss != "eps", "few_step.loss must be u, v or x0: eps vanishes at pure noise")
        count = self.base_steps
        require(
            count >= 2 and not count & (count - 1), "few_step.base_steps must be a power of two"
        )

    @property
    def dyadic(self) -> bool:
        """Whether only halves, quarters, ... of the way are trained."""
        return False

    def _shared(self, denoising: Denoising, null_label: int | None) -> dict[str, Any]:
        return {
            "denoising": denoising,
            "grid": StepGrid(denoising.schedule, self.spacing, self.base_steps),
            "share": self.share,
            "weight": self.weight,
            "loss": self.loss or ("x0" if denoising.prediction == "x0" else "u"),
            "guidance": self.guidance,
            "null_label": null_label,
        }


@FewStepConfig.register_subclass("shortcut")
@dataclass(frozen=True)
class ShortcutConfig(StepsConfig):
    """`target_length`: the average of the weights that makes the targets, one of `ema.lengths`."""

    target_length: float = 0.05

    @property
    def dyadic(self) -> bool:
        """See `StepsConfig`."""
        return True

    def build(self, denoising: Denoising, null_label: int | None) -> FewStep:
        return Shortcut(**self._shared(denoising, null_label))


@FewStepConfig.register_subclass("consistency")
@dataclass(frozen=True)
class ConsistencyConfig(StepsConfig):
    """In the limit; see `objectives.ContinuousConsistency`."""

    warmup_images: int = 0
    tangent_offset: float = 0.1

    def build(self, denoising: Denoising, null_label: int | None) -> FewStep:
        return ContinuousConsistency(
            **self._shared(denoising, null_label),
            warmup_images=self.warmup_images,
            tangent_offset=self.tangent_offset,
        )


@FewStepConfig.register_subclass("discrete_consistency")
@dataclass(frozen=True)
class DiscreteConsistencyConfig(StepsConfig):
    """In pairs of neighbouring points; see `objectives.DiscreteConsistency`."""

    loss: Prediction | None = "x0"
    intervals: int = 64
    huber: float = 0.00054

    def build(self, denoising: Denoising, null_label: int | None) -> FewStep:
        return DiscreteConsistency(
            **self._shared(denoising, null_label), intervals=self.intervals, huber=self.huber
        )


@FewStepConfig.register_subclass("meanflow")
@dataclass(frozen=True)
class MeanFlowConfig(StepsConfig):
    """See `objectives.MeanFlow`."""

    adaptive_power: float = 1.0
    adaptive_offset: float = 0.01

    def build(self, denoising: Denoising, null_label: int | None) -> FewStep:
        return MeanFlow(
            **self._shared(denoising, null_label),
            adaptive_power=self.adaptive_power,
            adaptive_offset=self.adaptive_offset,
        )
