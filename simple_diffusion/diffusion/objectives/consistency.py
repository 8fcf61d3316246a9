"""Consistency training: every point of a path leads to the same image.

f(z, s) = y - τ ū(z, s, d = s), the image at the end of one step over the whole way, is to be the
same along a path; f(x, 0) = x holds exactly. In pairs of neighbouring points (Song et al. 2023,
Song & Dhariwal 2023), or in the limit, where df/dτ = u - ū - τ dū/dτ is to vanish (Lu & Song 2024,
sCM), on the straight path of any schedule.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import match_dims, path_scale
from simple_diffusion.diffusion.objectives.base import Batch
from simple_diffusion.diffusion.objectives.few_step import FewStep, Targets
from simple_diffusion.diffusion.objectives.tangents import along_path, velocity_and_derivative
from simple_diffusion.diffusion.prediction import Prediction, diffuse


@dataclass(frozen=True)
class DiscreteConsistency(FewStep):
    """Neighbouring points of a grid lead to the same image.

    The loss is the pseudo-Huber distance over the Δτ between the points; measured in x0, that of
    the two images. The teacher is the network itself.

    Attributes:
        intervals: of the grid, equal in the spacing's coordinate.
        huber: the pseudo-Huber constant, in units of the root mean square over an image.
    """

    loss: Prediction = "x0"
    intervals: int = 64
    huber: float = 0.00054

    to_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.intervals < 2:
            raise ValueError(f"few_step.intervals must be at least 2, got {self.intervals}")
        if not self.huber > 0.0:
            raise ValueError(f"few_step.huber must be positive, got {self.huber}")

    def targets(self, batch: Batch, teacher: Network) -> Targets:
        """See `FewStep.targets`."""
        number = (self.grid.position(batch.t) * self.intervals).ceil().clamp(1, self.intervals)
        s, before = number / self.intervals, (number - 1) / self.intervals
        tau, tau_before = self.grid.tau(s), self.grid.tau(before)
        logsnr = self.grid.logsnr(s).to(batch.x0)
        z = diffuse(batch.x0, batch.eps, logsnr)
        velocity = self.guided(batch.eps - batch.x0, teacher, z, logsnr, batch.labels)
        y = z / match_dims(path_scale(logsnr), z)
        y_before = y - match_dims((tau - tau_before).to(y), y) * velocity
        logsnr_before = self.grid.logsnr(before).to(y)
        z_before = y_before * match_dims(path_scale(logsnr_before), y)
        there = self.velocity(teacher, z_before, logsnr_before, batch.labels, before.to(y))
        image = (y_before - match_dims(tau_before.to(y), y) * there).clamp(-1.0, 1.0)
        wanted = (y - image) / match_dims(tau.to(y), y)
        apart = (tau - tau_before).to(y)

        def weigh(mse: Tensor) -> Tensor:
            return 1.0 / (apart * (mse + self.huber**2).sqrt())

        return Targets(s, s, wanted, weigh)


@dataclass(frozen=True)
class ContinuousConsistency(FewStep):
    """The image does not change along a path: df/dτ = 0.

    The target is ū + g/(|g| + c), with the tangent g = u - ū - w τ dū/dτ and |g| its root mean
    square over an image; w rises from 0, plain flow matching, to 1.

    Attributes:
        warmup_images: over which w rises.
        tangent_offset: c.
    """

    warmup_images: int = 0
    tangent_offset: float = 0.1

    to_data: ClassVar[bool] = True
    needs_jvp: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_images < 0:
            raise ValueError(f"few_step.warmup_images must not be negative: {self.warmup_images}")
        if not self.tangent_offset > 0.0:
            raise ValueError(f"few_step.tangent_offset must be positive: {self.tangent_offset}")

    def targets(self, batch: Batch, teacher: Network) -> Targets:
        """See `FewStep.targets`."""
        s = self.grid.position(batch.t)
        logsnr = self.grid.logsnr(s).to(batch.x0)
        z = diffuse(batch.x0, batch.eps, logsnr)
        velocity = self.guided(batch.eps - batch.x0, teacher, z, logsnr, batch.labels)
        dz, dlogsnr = along_path(z, logsnr, velocity)
        ds = self.grid.position_per_tau(batch.t).to(z)
        whole, derivative = velocity_and_derivative(
            teacher,
            self.denoising.prediction,
            (z, logsnr, s.to(z)),
            batch.labels,
            (dz, dlogsnr, ds),
        )
        tau = match_dims(self.grid.tau(s).to(z), z)
        tangent = velocity - whole - self._risen(batch.images_seen) * tau * derivative
        size = tangent.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return Targets(s, s, whole + tangent / (size + self.tangent_offset))

    def _risen(self, images_seen: int) -> float:
        return min(1.0, images_seen / self.warmup_images) if self.warmup_images else 1.0
