"""MeanFlow: the average velocity over a step, from its derivative along the path.

ū(τ, r) = u - (τ-r) dū/dτ. Source: Geng et al. 2025 (MeanFlow); with the improved target of Geng et
al. 2025 (iMF), in which the derivative is taken along the network's own velocity at step size 0:
what the path's derivative is compared with is then a function of z alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import match_dims
from simple_diffusion.diffusion.objectives.base import Batch
from simple_diffusion.diffusion.objectives.few_step import FewStep, Targets, on_device
from simple_diffusion.diffusion.objectives.tangents import along_path, velocity_and_derivative
from simple_diffusion.diffusion.prediction import diffuse


@dataclass(frozen=True)
class MeanFlow(FewStep):
    """Steps between two times drawn as the denoising objective draws its own.

    The target is u - (τ-r) dū/dτ, with u = eps - x0 (guided, if asked for), and each image's loss
    is divided by (its squared error + c)^p, a constant for the gradient.

    Attributes:
        adaptive_power: p.
        adaptive_offset: c.
    """

    adaptive_power: float = 1.0
    adaptive_offset: float = 0.01

    needs_jvp: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive_power < 0.0:
            raise ValueError(f"few_step.adaptive_power must not be negative: {self.adaptive_power}")
        if not self.adaptive_offset > 0.0:
            raise ValueError(f"few_step.adaptive_offset must be positive: {self.adaptive_offset}")

    def targets(self, batch: Batch, teacher: Network) -> Targets:
        """See `FewStep.targets`."""
        assert batch.place is not None
        other = self.denoising.times.quantile(on_device(batch.place, batch.t)).to(batch.t)
        t = torch.maximum(batch.t, other)
        s, end = self.grid.position(t), self.grid.position(torch.minimum(batch.t, other))
        size = s - end
        logsnr = self.grid.logsnr(s).to(batch.x0)
        z = diffuse(batch.x0, batch.eps, logsnr)
        nothing = torch.zeros_like(logsnr)
        own = self.velocity(teacher, z, logsnr, batch.labels, nothing)
        own = self.guided(own, teacher, z, logsnr, batch.labels)
        dz, dlogsnr = along_path(z, logsnr, own)
        ds = self.grid.position_per_tau(t).to(z)
        _, derivative = velocity_and_derivative(
            teacher,
            self.denoising.prediction,
            (z, logsnr, size.to(z)),
            batch.labels,
            (dz, dlogsnr, ds),
        )
        span = match_dims((self.grid.tau(s) - self.grid.tau(end)).to(z), z)
        velocity = self.guided(batch.eps - batch.x0, teacher, z, logsnr, batch.labels)

        def weigh(mse: Tensor) -> Tensor:
            return (mse + self.adaptive_offset).pow(-self.adaptive_power)

        return Targets(s, size, velocity - span * derivative, weigh)
