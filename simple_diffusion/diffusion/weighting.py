"""Loss weights as functions of λ, stated once and valid in every prediction space.

A weighting's natural statement is as a weight on one kind of squared error; on another kind it is
the same objective after division by the squared error factor. `x0_weight` of e.g. `Sigmoid` is
therefore the same whichever space the loss is measured in.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from simple_diffusion.diffusion.logsnr import at_least_float32
from simple_diffusion.diffusion.prediction import Prediction


def log_x0_factor(logsnr: Tensor, loss: Prediction) -> Tensor:
    """log k(λ), where a weight w on the `loss` error equals the weight k·w on the x0 error.

    k is e^λ for eps, 1 + e^λ for v, (1 + e^(λ/2))² for u and 1 for x0.
    """
    logsnr = at_least_float32(logsnr)
    if loss == "eps":
        return logsnr
    if loss == "v":
        return -logsigmoid(-logsnr)
    if loss == "u":
        return -2.0 * logsigmoid(-0.5 * logsnr)
    if loss == "x0":
        return torch.zeros_like(logsnr)
    raise ValueError(f"unknown loss space {loss!r}")


class Weighting(ABC):
    """λ -> weight of the squared error in a given prediction space."""

    @abstractmethod
    def log_x0_weight(self, logsnr: Tensor) -> Tensor | None:
        """log of the weight on the x0 error; None if the weight is 1 in whatever space is used."""

    def __call__(self, logsnr: Tensor, loss: Prediction) -> Tensor:
        """Weight on the squared `loss` error, shape of `logsnr`."""
        log_weight = self.log_x0_weight(logsnr)
        if log_weight is None:
            return torch.ones_like(at_least_float32(logsnr))
        return torch.exp(log_weight - log_x0_factor(logsnr, loss))


@dataclass(frozen=True)
class Uniform(Weighting):
    """Weight 1 in the space the loss is measured in (simple diffusion: on eps)."""

    def log_x0_weight(self, logsnr: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """S(bias - λ) on eps, i.e. e^bias · S(λ - bias) on x0. Source: Hoogeboom et al. 2024 (SiD2)."""

    bias: float = 0.0

    def log_x0_weight(self, logsnr: Tensor) -> Tensor:
        return self.bias + logsigmoid(at_least_float32(logsnr) - self.bias)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) on x0. Source: Hang et al. 2023, section 3.4."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0.0:
            raise ValueError(f"min-SNR gamma must be positive, got {self.gamma}")

    def log_x0_weight(self, logsnr: Tensor) -> Tensor:
        return torch.clamp(at_least_float32(logsnr), max=math.log(self.gamma))


def density_correction(logsnr_derivative: Tensor, time_density: Tensor) -> Tensor:
    """1/p(λ) = -(dλ/dt)/p(t): makes the expected loss an integral over λ with no preference.

    Args:
        logsnr_derivative: dλ/dt at the drawn t (negative), shape (B,).
        time_density: p(t) at the drawn t, shape (B,).
    """
    return -logsnr_derivative / time_density
