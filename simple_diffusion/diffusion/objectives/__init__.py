"""Training objectives: (network, batch) -> a loss for each image, and its named terms."""

from simple_diffusion.diffusion.objectives.base import Batch, Losses, Objective
from simple_diffusion.diffusion.objectives.denoising import Denoising

__all__ = ["Batch", "Denoising", "Losses", "Objective"]
