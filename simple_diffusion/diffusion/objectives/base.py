"""What every objective takes and gives."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simple_diffusion.diffusion.guidance import Network


@dataclass(frozen=True)
class Batch:
    """One rank's share of a training step (or a micro-batch of it).

    Attributes:
        x0: clean images in [-1, 1], shape (B, C, H, W).
        eps: standard normal noise, same shape.
        t: times in [0, 1], shape (B,).
        labels: class labels, int64, shape (B,), dropped ones already null; None if unconditional.
        pick: uniform numbers in [0, 1), shape (B,), one in each stratum of the step: they say what
            a few-step objective does with each image. No tensors, since shapes depend on them.
        place: further uniform numbers, not stratified.
        images_seen: images seen in training before this step.
    """

    x0: Tensor
    eps: Tensor
    t: Tensor
    labels: Tensor | None = None
    pick: NDArray[np.float64] | None = None
    place: NDArray[np.float64] | None = None
    images_seen: int = 0

    def rows(self, piece: slice) -> "Batch":
        """Some of the images."""
        return Batch(
            self.x0[piece],
            self.eps[piece],
            self.t[piece],
            None if self.labels is None else self.labels[piece],
            None if self.pick is None else self.pick[piece],
            None if self.place is None else self.place[piece],
            self.images_seen,
        )


@dataclass(frozen=True)
class Losses:
    """A loss for each image, shape (B,), and its terms, each (B,), detached: for the log only.

    A term is nan for images that it does not speak of.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(Protocol):
    """Callable with a network and a batch.

    Few-step objectives also take a teacher: a network like the first, in evaluation mode, that they
    call without gradients to make their targets.
    """

    def __call__(
        self, network: Network, batch: Batch, teacher: Network | None = None
    ) -> Losses: ...
