"""How training times t are drawn: one stratum of [0, 1] per image of the global batch."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import at_least_float32


class TimeDistribution(ABC):
    """A distribution on (0, 1), given by its quantile function and its density."""

    @abstractmethod
    def quantile(self, q: Tensor) -> Tensor:
        """t with P(T <= t) = q; shape of `q`."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """p(t); shape of `t`."""


@dataclass(frozen=True)
class UniformTime(TimeDistribution):
    """t uniform on [0, 1]."""

    def quantile(self, q: Tensor) -> Tensor:
        return at_least_float32(q)

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(at_least_float32(t))


@dataclass(frozen=True)
class LogitNormal(TimeDistribution):
    """logit(t) normal with this mean and standard deviation (Esser et al. 2024, section 3.1).

    Papers whose t = 1 is data have the opposite sign of `mean`.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0.0:
            raise ValueError(f"logit-normal std must be positive, got {self.std}")

    def quantile(self, q: Tensor) -> Tensor:
        q = at_least_float32(q)
        tiny = torch.finfo(q.dtype).eps
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(q.clamp(tiny, 1.0 - tiny)))

    def density(self, t: Tensor) -> Tensor:
        t = at_least_float32(t)
        score = (torch.logit(t) - self.mean) / self.std
        normal = torch.exp(-0.5 * score.square()) / (self.std * math.sqrt(2.0 * math.pi))
        return normal / (t * (1.0 - t))


def stratified_quantiles(strata: Tensor, jitter: Tensor, count: int) -> Tensor:
    """(stratum + jitter) / count: exactly one draw in each of `count` equal parts of [0, 1].

    Strata of a step must be dealt by a permutation that does not depend on the data order: the
    batch is sorted by shard, and without it t would be tied to the shard.

    Args:
        strata: this rank's share of a permutation of 0..count-1, shape (b,).
        jitter: uniform on [0, 1), shape (b,).
        count: size of the global batch.
    """
    return (strata + jitter) / count
