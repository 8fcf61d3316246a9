"""Images whose pixels are normal with mean m and standard deviation c: all is known in closed form.

With V(τ)² = (1-τ)² c² + τ², the flow is y_r = (1-r) m + V(r)/V(τ) (y - (1-τ) m), and the average
velocity between τ and r is -m + [(τ+r) - c² (2-τ-r)] / [V(τ) (V(τ) + V(r))] (y - (1-τ) m).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import alpha_sigma, match_dims, path_scale, tau_from_logsnr
from simple_diffusion.diffusion.prediction import Prediction, convert
from simple_diffusion.diffusion.spacing import point
from simple_diffusion.diffusion.step_grid import StepGrid

MEAN, STD = 0.1, 0.2


def spread(tau: Tensor) -> Tensor:
    """V(τ)."""
    return ((1.0 - tau) ** 2 * STD**2 + tau**2).sqrt()


def average_velocity(y: Tensor, tau: Tensor, end: Tensor) -> Tensor:
    """ū from τ to `end`; u itself where they are equal."""
    rise = (tau + end) - STD**2 * (2.0 - tau - end)
    return -MEAN + rise / (spread(tau) * (spread(tau) + spread(end))) * (y - (1.0 - tau) * MEAN)


def flow(y: Tensor, tau: Tensor, end: Tensor) -> Tensor:
    """y at `end`."""
    return (1.0 - end) * MEAN + spread(end) / spread(tau) * (y - (1.0 - tau) * MEAN)


@dataclass(frozen=True)
class ExactNetwork:
    """The network that training should arrive at, for a grid of steps."""

    grid: StepGrid
    prediction: Prediction = "u"
    offset: float = 0.0  # added to its ū

    def __call__(
        self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None, step: Tensor | None = None
    ) -> Tensor:
        tau = tau_from_logsnr(logsnr)
        end = tau
        if step is not None:
            s = self.grid.position(self.grid.schedule.inverse(logsnr))
            landing = (s - step).clamp(min=0.0)
            landing = torch.where(landing < 1e-7, 0.0, landing)  # rounding of the inverse
            end = torch.where(step > 0.0, self.grid.tau(landing).to(tau), tau)
        y = z / match_dims(path_scale(logsnr), z)
        velocity = average_velocity(y, match_dims(tau, z), match_dims(end, z)) + self.offset
        return convert(velocity, z, logsnr, "u", self.prediction)


def draw(count: int, *, shape: tuple[int, ...] = (1, 2, 2), seed: int = 0) -> tuple[Tensor, Tensor]:
    """(images, noise), float64."""
    generator = torch.Generator().manual_seed(seed)
    x0 = MEAN + STD * torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return x0, torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def expected_pair(grid: StepGrid, s: Tensor, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """(E[x0 | z], E[eps | z]) for z = α x0 + σ eps at positions s: the same z, without luck.

    Targets are linear in u = eps - x0, so with this pair they are their own expectations.
    """
    logsnr = point(grid.schedule, grid.spacing, s)[1]
    alpha, sigma = (match_dims(one, x0) for one in alpha_sigma(logsnr))
    z = alpha * x0 + sigma * eps
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    image = MEAN + gain * (z - alpha * MEAN)
    return image, (z - alpha * image) / sigma
