"""Shortcut models: a step of size d is two steps of size d/2.

Source: Frans et al. 2024 (One Step Diffusion via Shortcut Models); read by Su Jianlin as a
condition on the step size, v(x, t, 2ε) = [v(x, t, ε) + v(x', t + ε, ε)] / 2. Here steps are those
of a schedule and a spacing, so that halves of a step cover unequal Δτ, and velocities are averaged
by Δτ; with equal steps of τ it is the paper's mean.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import match_dims, path_scale
from simple_diffusion.diffusion.objectives.base import Batch
from simple_diffusion.diffusion.objectives.few_step import (
    FewStep,
    Targets,
    Teacher,
    clipped,
    is_collective,
    on_device,
)
from simple_diffusion.diffusion.prediction import diffuse


@dataclass(frozen=True)
class Shortcut(FewStep):
    """Bootstraps steps of 1, 1/2, ..., 2/base_steps of the way from their halves.

    Sizes are drawn evenly, and positions evenly among the multiples of the size. Both halves are
    the teacher's, an average of the network; the halves of the smallest size are base steps, and
    only there the targets are guided: larger steps inherit it. Labels are dropped as for
    denoising, so that steps without a class are learned too.
    """

    dyadic: ClassVar[bool] = True
    teacher: ClassVar[Teacher] = "average"

    def targets(self, batch: Batch, teacher: Network) -> Targets:
        """See `FewStep.targets`."""
        assert batch.pick is not None
        assert batch.place is not None
        doublings = self.grid.doublings
        levels = np.floor(batch.pick / self.share * doublings).clip(0, doublings - 1)
        sizes = np.exp2(-levels)
        positions = sizes * (np.floor(batch.place / sizes) + 1.0)
        s, size = on_device(positions, batch.x0), on_device(sizes, batch.x0)
        smallest = on_device(np.flatnonzero(levels == doublings - 1), batch.x0)

        middle = s - 0.5 * size
        tau, tau_middle, tau_end = map(self.grid.tau, (s, middle, s - size))
        half = torch.where(0.5 * size * self.grid.base_steps > 1.0, 0.5 * size, 0.0)
        z = diffuse(batch.x0, batch.eps, self.grid.logsnr(s).to(batch.x0))
        first, y = self._half(teacher, z, s, half, batch.labels, smallest)
        y = y - match_dims((tau - tau_middle).to(y), y) * first
        z = y * match_dims(path_scale(self.grid.logsnr(middle).to(y)), y)
        second, _ = self._half(teacher, z, middle, half, batch.labels, smallest)
        share = match_dims(((tau - tau_middle) / (tau - tau_end)).to(y), y)
        return Targets(s, size, share * first + (1.0 - share) * second)

    def _half(
        self,
        teacher: Network,
        z: Tensor,
        s: Tensor,
        half: Tensor,
        labels: Tensor | None,
        smallest: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(ū of half a step from s, y there)."""
        logsnr = self.grid.logsnr(s).to(z)
        velocity = self.velocity(teacher, z, logsnr, labels, half.to(z))
        if self.guidance != 1.0 and (len(smallest) or is_collective(teacher)):
            assert labels is not None
            rows = smallest if len(smallest) else smallest.new_zeros(1)
            guided = self.guided(velocity[rows], teacher, z[rows], logsnr[rows], labels[rows])
            if len(smallest):
                velocity = velocity.index_copy(0, smallest, guided)
        y = z / match_dims(path_scale(logsnr), z)
        return clipped(velocity, y, self.grid.tau(s).to(y)), y
