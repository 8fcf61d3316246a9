"""What every objective takes and gives."""

from dataclasses import dataclass
from typing import Protocol

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
    """

    x0: Tensor
    eps: Tensor
    t: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """A loss for each image, shape (B,), and its terms, each (B,), detached: for the log only."""

    loss: Tensor
    terms: dict[str, Tensor]


class Objective(Protocol):
    """Callable with a network and a batch."""

    def __call__(self, network: Network, batch: Batch) -> Losses: ...
