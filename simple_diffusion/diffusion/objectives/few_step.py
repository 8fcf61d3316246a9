"""What the few-step objectives share: two kinds of images in one batch, one call of the network.

Most images are for plain denoising, at step size 0. The others, a `share` of every step's batch,
teach the network larger steps: at (z, s) with step size d it is to give the average velocity ū of
the straight path from s to s - d, so that y moves by -(τ(s) - τ(s-d)) ū. What differs between the
objectives is the target for ū. Errors are not weighted by λ, as denoising's are: weights that fade
at pure noise, where one-step sampling begins, would leave that untrained.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import at_least_float32, match_dims
from simple_diffusion.diffusion.objectives.base import Batch, Losses
from simple_diffusion.diffusion.objectives.denoising import Denoising
from simple_diffusion.diffusion.prediction import (
    Prediction,
    convert,
    diffuse,
    error_factor,
    target,
)
from simple_diffusion.diffusion.step_grid import StepGrid

# What the teacher's weights are: an average of the network's, or its own.
Teacher = Literal["average", "own"]


@dataclass(frozen=True)
class Targets:
    """What the network is to say of the images that teach it larger steps; b of them.

    Attributes:
        s: positions, float64, shape (b,), 1 is noise.
        step: step sizes as the network is told them, float64, shape (b,).
        velocity: the wanted ū, shape (b, C, H, W).
        weigh: mean squared error of each, as it is measured, shape (b,), detached -> weight of
            its loss.
    """

    s: Tensor
    step: Tensor
    velocity: Tensor
    weigh: Callable[[Tensor], Tensor] = torch.ones_like


@dataclass(frozen=True)
class FewStep(ABC):
    """A denoising objective, and what is asked of larger steps beside it.

    Attributes:
        denoising: the objective of the images at step size 0; its prediction and its multiscale
            loss are those of the larger steps too.
        grid: where steps fall.
        share: of each batch, that teaches larger steps.
        weight: of their loss.
        loss: the prediction whose error is measured for them. One in u counts 1/τ² times as much in
            x0: networks that predict u or v are even in u, networks that predict x0 in x0.
        guidance: classifier-free guidance that is baked into the targets; 1 for none.
        null_label: the null class; None for an unconditional network.

    Raises:
        ValueError: values out of range, or guidance without classes.
    """

    denoising: Denoising
    grid: StepGrid
    share: float = 0.25
    weight: float = 1.0
    loss: Prediction = "u"
    guidance: float = 1.0
    null_label: int | None = None

    # Whether a step size is the whole way to the data, whose end is then noised again.
    to_data: ClassVar[bool] = False
    # Whether only halves, quarters, ... of the way are trained.
    dyadic: ClassVar[bool] = False
    # Whether the teacher is differentiated forward.
    needs_jvp: ClassVar[bool] = False
    teacher: ClassVar[Teacher] = "own"

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"few_step.share must lie in (0, 1), got {self.share}")
        if not self.weight > 0.0:
            raise ValueError(f"few_step.weight must be positive, got {self.weight}")
        if self.loss == "eps":
            raise ValueError(
                "few_step.loss eps vanishes at pure noise, where one-step sampling begins: "
                "use u, v or x0"
            )
        if self.guidance != 1.0 and self.null_label is None:
            raise ValueError(
                f"few_step.guidance {self.guidance} needs a class-conditional network; use 1"
            )

    @abstractmethod
    def targets(self, batch: Batch, teacher: Network) -> Targets:
        """Targets for these images, all of which teach larger steps. No gradients are kept."""

    def __call__(self, network: Network, batch: Batch, teacher: Network | None = None) -> Losses:
        """Loss of each image.

        Terms: `<loss>_mse` as the denoising objective's, `few_step_mse` that of larger steps.
        """
        assert teacher is not None, "few-step objectives need a teacher"
        assert batch.pick is not None
        few = np.flatnonzero(batch.pick < self.share)
        there = on_device(few, batch.x0)
        logsnr = self.denoising.schedule(batch.t)
        step = torch.zeros_like(logsnr)
        with torch.no_grad():
            asked = self._ask(batch, few, there, teacher)
        if asked is not None:
            of_few = self.grid.logsnr(asked.s).to(logsnr)
            logsnr = logsnr.index_copy(0, there, of_few)
            step = step.index_copy(0, there, asked.step.to(step))
        kind = self.denoising.prediction
        z = diffuse(batch.x0, batch.eps, logsnr)
        wanted = target(kind, batch.x0, batch.eps, logsnr)
        factor = error_factor(logsnr, kind, self.denoising.loss)
        if asked is not None:
            ours = convert(asked.velocity, z[there], of_few, "u", kind).to(wanted.dtype)
            wanted = wanted.index_copy(0, there, ours)
            factor = factor.index_copy(0, there, error_factor(of_few, kind, self.loss))
        error = at_least_float32(network(z, logsnr, batch.labels, step)) - wanted
        measured, mse = self.denoising.measure(error * match_dims(factor, error))
        weights = self.denoising.weights(batch.t)
        if asked is not None:
            ours_weight = self.weight * asked.weigh(mse.detach()[there])
            weights = weights.index_copy(0, there, ours_weight.to(weights))
        terms = {f"{self.denoising.loss}_mse": mse.detach().clone()}
        terms["few_step_mse"] = torch.full_like(mse, torch.nan)
        if asked is not None:
            terms["few_step_mse"][there] = mse.detach()[there]
            terms[f"{self.denoising.loss}_mse"][there] = torch.nan
        return Losses(weights * measured, terms)

    def _ask(
        self, batch: Batch, few: NDArray[np.int64], there: Tensor, teacher: Network
    ) -> Targets | None:
        """Targets for some images; None for none.

        Without any, a teacher whose weights are cut up between processes is asked about one all
        the same: each must call it as often as the others.
        """
        if len(few):
            return self.targets(_chosen(batch, few, there), teacher)
        if not is_collective(teacher):
            return None
        first = np.zeros(1, dtype=np.int64)
        self.targets(_chosen(batch, first, on_device(first, there)), teacher)
        return None

    def velocity(
        self, network: Network, z: Tensor, logsnr: Tensor, labels: Tensor | None, step: Tensor
    ) -> Tensor:
        """ū of the straight path, as a network has it: (z, λ, labels, step) -> (b, C, H, W)."""
        output = network(z, logsnr, labels, step)
        return convert(output, z, logsnr, self.denoising.prediction, "u")

    def guided(
        self, velocity: Tensor, teacher: Network, z: Tensor, logsnr: Tensor, labels: Tensor | None
    ) -> Tensor:
        """A velocity that belongs to `labels`, moved away from that of no class by `guidance`."""
        if self.guidance == 1.0:
            return velocity
        assert labels is not None
        assert self.null_label is not None
        null = torch.full_like(labels, self.null_label)
        without = self.velocity(teacher, z, logsnr, null, torch.zeros_like(logsnr))
        return without + self.guidance * (velocity - without)


def is_collective(teacher: Network) -> bool:
    """Whether calling it is something that all processes do together."""
    return bool(getattr(teacher, "collective", False))


def clipped(velocity: Tensor, y: Tensor, tau: Tensor) -> Tensor:
    """The velocity whose image y - τ ū lies in the range of images, [-1, 1].

    Exact ones do: ū over any step is y minus a mean of clean images, over τ, since along the path
    y_r / r changes by the denoised image times d(1/r).
    """
    tau = match_dims(tau, y)
    return (y - (y - tau * velocity).clamp(-1.0, 1.0)) / tau


def on_device(values: NDArray[Any], like: Tensor) -> Tensor:
    """As a tensor where another one is, without waiting for what is queued there."""
    return torch.from_numpy(values).to(like.device, non_blocking=True)


def _chosen(batch: Batch, few: NDArray[np.int64], there: Tensor) -> Batch:
    assert batch.pick is not None
    assert batch.place is not None
    return Batch(
        batch.x0[there],
        batch.eps[there],
        batch.t[there],
        None if batch.labels is None else batch.labels[there],
        batch.pick[few],
        batch.place[few],
        batch.images_seen,
    )
