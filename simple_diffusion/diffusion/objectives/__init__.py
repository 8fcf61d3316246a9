"""Training objectives: (network, batch) -> a loss for each image, and its named terms."""

from simple_diffusion.diffusion.objectives.base import Batch, Losses, Objective
from simple_diffusion.diffusion.objectives.consistency import (
    ContinuousConsistency,
    DiscreteConsistency,
)
from simple_diffusion.diffusion.objectives.denoising import Denoising
from simple_diffusion.diffusion.objectives.few_step import FewStep, Teacher
from simple_diffusion.diffusion.objectives.meanflow import MeanFlow
from simple_diffusion.diffusion.objectives.shortcut import Shortcut

__all__ = [
    "Batch",
    "ContinuousConsistency",
    "Denoising",
    "DiscreteConsistency",
    "FewStep",
    "Losses",
    "MeanFlow",
    "Objective",
    "Shortcut",
    "Teacher",
]
