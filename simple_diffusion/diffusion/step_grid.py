"""The steps that few-step networks are trained for: their sizes, and where they fall.

The way from noise to data is cut into `base_steps` equal steps of the spacing's coordinate; larger
steps are 2, 4, ... of them. A step size is a share of the whole way, which the network is told.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import tau_from_logsnr
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.spacing import (
    SPACINGS,
    Spacing,
    logsnr_at,
    position,
    position_per_tau,
)

# A base step is taken with the plain denoiser, so it must be one that Euler's method takes well.
COARSEST_TAU = 0.05


@dataclass(frozen=True)
class StepGrid:
    """Equal steps along a schedule, as a power of two of them.

    Attributes:
        schedule: t -> λ.
        spacing: in what the steps are equal.
        base_steps: number of the smallest steps. Nothing smaller is trained: a step of this size is
            told to the network as 0, the plain denoiser.

    Raises:
        ValueError: `base_steps` is no power of two, or a base step is coarser than `COARSEST_TAU`
            on the straight path; the message says what would do.
    """

    schedule: Schedule
    spacing: Spacing = "t"
    base_steps: int = 128

    def __post_init__(self) -> None:
        count = self.base_steps
        if count < 2 or count & (count - 1):
            raise ValueError(f"base_steps must be a power of two, at least 2, got {count}")
        coarsest, start = _coarsest(self.schedule, self.spacing, count)
        if coarsest > COARSEST_TAU:
            raise ValueError(
                f"the base step from τ = {start:.3f} covers {coarsest:.3f} of the straight path, "
                f"more than the {COARSEST_TAU} that one call of the denoiser can take: "
                f"{_remedy(self.schedule, self.spacing, count)}"
            )

    @property
    def doublings(self) -> int:
        """How often the base step is doubled to cover the whole way: log2(base_steps)."""
        return self.base_steps.bit_length() - 1

    def logsnr(self, s: Tensor) -> Tensor:
        """λ at positions s in [0, 1] (1 is noise), float64."""
        return logsnr_at(self.schedule, self.spacing, s)

    def tau(self, s: Tensor) -> Tensor:
        """Time of the straight path at positions s, float64; 0 at s = 0.

        So the last step ends on the clean image, not at the little noise of λ(0). At s = 1 τ is
        what it is.
        """
        return torch.where(s > 0.0, tau_from_logsnr(self.logsnr(s)), 0.0)

    def position(self, t: Tensor) -> Tensor:
        """The position of schedule times t, float64."""
        return position(self.schedule, self.spacing, t)

    def position_per_tau(self, t: Tensor) -> Tensor:
        """ds/dτ at schedule times t, float64."""
        return position_per_tau(self.schedule, self.spacing, t)

    def condition(self, size: float) -> float:
        """What the network is told of a step: 0 for base steps and smaller ones."""
        return size if size * self.base_steps > 1.0 + 1e-9 else 0.0

    def check_dyadic(self, steps: int) -> None:
        """Raises ValueError if steps are no halves, quarters, ... of the way."""
        if steps < self.base_steps and steps & (steps - 1):
            raise ValueError(
                f"few_step: {steps} steps were not trained, only 1, 2, 4, ... {self.base_steps}"
            )


def _coarsest(schedule: Schedule, spacing: Spacing, count: int) -> tuple[float, float]:
    """The largest Δτ of so many equal steps, and the τ where it starts."""
    s = torch.linspace(1.0, 0.0, count + 1, dtype=torch.float64, device="cpu")
    tau = tau_from_logsnr(logsnr_at(schedule, spacing, s))
    tau[-1] = 0.0
    sizes = tau[:-1] - tau[1:]
    worst = int(sizes.argmax())
    return float(sizes[worst]), float(tau[worst])


def _remedy(schedule: Schedule, spacing: Spacing, count: int) -> str:
    others = [
        other
        for other in SPACINGS
        if other != spacing and _coarsest(schedule, other, count)[0] <= COARSEST_TAU
    ]
    ways = [f"set the spacing to {' or '.join(others)}"] if others else []
    finer = (2**k for k in range(1, 13))
    enough = [n for n in finer if _coarsest(schedule, spacing, n)[0] <= COARSEST_TAU]
    if enough:
        ways.append(f"use {enough[0]} base steps")
    ways.append("use an interpolated schedule, whose data end is that of the image's own size")
    return ", or ".join(ways)
