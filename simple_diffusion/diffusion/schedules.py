"""Noise schedules: monotone maps from time t in [0, 1] to log-SNR λ.

A schedule is a frozen dataclass, callable on tensors of t. `derivative` is dλ/dt (what the density
correction needs; it depends on t, not on λ alone) and `inverse` is t(λ). All three work in the
precision of their argument, float32 at least.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import at_least_float32, tau_from_logsnr

BISECTIONS = 60  # halvings of [0, 1]: below float64 resolution


class Schedule(ABC):
    """A strictly decreasing map t -> λ on [0, 1]. Subclasses are frozen dataclasses."""

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """λ(t), of the shape of `t`; t = 0 is data, t = 1 is noise."""

    @abstractmethod
    def derivative(self, t: Tensor) -> Tensor:
        """dλ/dt at `t`; negative everywhere."""

    def inverse(self, logsnr: Tensor) -> Tensor:
        """t(λ) by bisection, for schedules without a closed inverse.

        λ outside [λ(1), λ(0)] is mapped to the nearer end.
        """
        target = at_least_float32(logsnr).double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            too_clean = self(middle) > target
            low = torch.where(too_clean, middle, low)
            high = torch.where(too_clean, high, middle)
        return (0.5 * (low + high)).to(at_least_float32(logsnr).dtype)


def _check_bounds(logsnr_min: float, logsnr_max: float) -> None:
    if not (math.isfinite(logsnr_min) and math.isfinite(logsnr_max) and logsnr_min < logsnr_max):
        raise ValueError(
            f"logsnr_min={logsnr_min} and logsnr_max={logsnr_max} must be finite, with "
            "logsnr_min below logsnr_max"
        )


@dataclass(frozen=True)
class Cosine(Schedule):
    """λ = -2 log tan(a t + b), truncated to [logsnr_min, logsnr_max].

    Source: Hoogeboom et al. 2023 (simple diffusion), after Nichol & Dhariwal 2021. The noisy half
    is computed from the far end of the angle, so that float32 stays exact near λ = ±20.
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __post_init__(self) -> None:
        _check_bounds(self.logsnr_min, self.logsnr_max)

    def _angles(self) -> tuple[float, float, float]:
        clean = math.atan(math.exp(-0.5 * self.logsnr_max))
        noisy = math.atan(math.exp(0.5 * self.logsnr_min))
        return 0.5 * math.pi - clean - noisy, clean, noisy

    def __call__(self, t: Tensor) -> Tensor:
        t = at_least_float32(t)
        span, clean, noisy = self._angles()
        from_data = -2.0 * torch.log(torch.tan(span * t + clean))
        from_noise = 2.0 * torch.log(torch.tan(span * (1.0 - t) + noisy))
        return torch.where(t <= 0.5, from_data, from_noise)

    def derivative(self, t: Tensor) -> Tensor:
        return -4.0 * self._angles()[0] * torch.cosh(0.5 * self(t))

    def inverse(self, logsnr: Tensor) -> Tensor:
        logsnr = at_least_float32(logsnr)
        span, clean, noisy = self._angles()
        from_data = (torch.atan(torch.exp(-0.5 * logsnr)) - clean) / span
        from_noise = 1.0 - (torch.atan(torch.exp(0.5 * logsnr)) - noisy) / span
        return torch.where(logsnr >= 0.0, from_data, from_noise)


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """λ = 2 log((1-τ)/τ): the straight path, τ affine in t so that both ends are finite.

    Clamping λ instead would make the ends flat: no inverse, and a zero derivative.
    Source: Liu et al. 2022 (rectified flow); log-SNR of the path as in Esser et al. 2024.
    """

    logsnr_min: float = -15.0
    logsnr_max: float = 15.0

    def __post_init__(self) -> None:
        _check_bounds(self.logsnr_min, self.logsnr_max)

    def _ends(self) -> tuple[float, float, float]:
        clean = 1.0 / (1.0 + math.exp(0.5 * self.logsnr_max))  # τ at t = 0
        noisy = 1.0 / (1.0 + math.exp(-0.5 * self.logsnr_min))  # 1 - τ at t = 1
        return clean, noisy, 1.0 - clean - noisy

    def _tau(self, t: Tensor) -> tuple[Tensor, Tensor]:
        clean, noisy, width = self._ends()
        return clean + width * t, noisy + width * (1.0 - t)

    def __call__(self, t: Tensor) -> Tensor:
        tau, one_minus_tau = self._tau(at_least_float32(t))
        return 2.0 * (torch.log(one_minus_tau) - torch.log(tau))

    def derivative(self, t: Tensor) -> Tensor:
        tau, one_minus_tau = self._tau(at_least_float32(t))
        return -2.0 * self._ends()[2] / (tau * one_minus_tau)

    def inverse(self, logsnr: Tensor) -> Tensor:
        logsnr = at_least_float32(logsnr)
        clean, noisy, width = self._ends()
        from_data = (tau_from_logsnr(logsnr) - clean) / width
        from_noise = 1.0 - (tau_from_logsnr(-logsnr) - noisy) / width
        return torch.where(logsnr >= 0.0, from_data, from_noise)


@dataclass(frozen=True)
class LinearBeta(Schedule):
    """The discrete DDPM schedule with linear β, as a continuous function of t.

    With B = -Σ log(1-β_i) over the steps taken, ᾱ = exp(-B) and λ = -log(expm1(B)). Here B(n) is
    the integral of -log(1-β) over [0, n], with β linear and equal to β_i in the middle of step i,
    so that whole n reproduce the published table of ᾱ. t runs affinely from the n where
    λ = logsnr_max to n = steps, where λ is about -10.12 for the published values.
    Source: Ho et al. 2020, section 4; λ form as in Kingma et al. 2021.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    logsnr_max: float = 15.0

    def __post_init__(self) -> None:
        if not (0.0 < self.beta_start <= self.beta_end < 1.0 and self.steps >= 2):
            raise ValueError(
                f"LinearBeta needs 0 < beta_start <= beta_end < 1 and steps >= 2, got "
                f"beta_start={self.beta_start}, beta_end={self.beta_end}, steps={self.steps}"
            )
        if self._beta(_scalar(0.0)) <= 0.0:
            raise ValueError(
                f"beta_start={self.beta_start} is below half of one step's increase; raise it or "
                "use more steps"
            )
        if self._beta(_scalar(self.steps)) >= 1.0:
            raise ValueError(
                f"beta_end={self.beta_end} is within half of one step's increase of 1; lower it or "
                "use more steps"
            )
        whole = self._decay(_scalar(self.steps))
        end = float(_logsnr_from_decay(whole))
        if not end < self.logsnr_max < math.inf:
            raise ValueError(
                f"logsnr_max={self.logsnr_max} must be finite and exceed λ(1)={end:.3f}"
            )

    def _beta(self, n: Tensor) -> Tensor:
        slope = (self.beta_end - self.beta_start) / (self.steps - 1)
        return self.beta_start + (n - 0.5) * slope

    def _decay(self, n: Tensor) -> Tensor:
        """B(n) by five-point Gauss-Legendre: exact to 1e-12, and no cancellation at small n."""
        inner, outer = (
            (0.5384693101056831, 0.4786286704993665),
            (0.906179845938664, 0.2369268850561891),
        )
        nodes = ((0.0, 0.5688888888888889), inner, outer)
        total = torch.zeros_like(n)
        for offset, weight in nodes:
            for sign in (-1.0, 1.0) if offset else (1.0,):
                total = total - weight * torch.log1p(-self._beta(0.5 * n * (1.0 + sign * offset)))
        return 0.5 * n * total

    @cached_property
    def _first(self) -> float:
        """The n (a fraction of one step, usually) at which λ = logsnr_max."""
        decay = math.log1p(math.exp(-self.logsnr_max))
        low, high = 0.0, float(self.steps)
        for _ in range(100):
            middle = 0.5 * (low + high)
            value = float(self._decay(_scalar(middle)))
            low, high = (middle, high) if value < decay else (low, middle)
        return 0.5 * (low + high)

    def _step(self, t: Tensor) -> Tensor:
        return self._first + (self.steps - self._first) * t

    def __call__(self, t: Tensor) -> Tensor:
        return _logsnr_from_decay(self._decay(self._step(at_least_float32(t))))

    def derivative(self, t: Tensor) -> Tensor:
        n = self._step(at_least_float32(t))
        rate = -torch.log1p(-self._beta(n)) * (self.steps - self._first)
        return rate / torch.expm1(-self._decay(n))


@dataclass(frozen=True)
class Shifted(Schedule):
    """`base` moved by 2 log(reference / image_size): the same SNR after pooling to `reference`.

    Averaging s x s pixels multiplies the SNR by s², so an image of side `image_size` needs λ lower
    by 2 log(image_size / reference) to be as hard as one of side `reference`.
    Source: Hoogeboom et al. 2023, section 3.1.
    """

    base: Schedule
    image_size: int
    reference: int

    def __post_init__(self) -> None:
        _check_sizes(image_size=self.image_size, reference=self.reference)

    @property
    def offset(self) -> float:
        """What is added to λ; negative when the image is larger than the reference."""
        return 2.0 * math.log(self.reference / self.image_size)

    def __call__(self, t: Tensor) -> Tensor:
        return self.base(t) + self.offset

    def derivative(self, t: Tensor) -> Tensor:
        return self.base.derivative(t)

    def inverse(self, logsnr: Tensor) -> Tensor:
        return self.base.inverse(at_least_float32(logsnr) - self.offset)


@dataclass(frozen=True)
class Interpolated(Schedule):
    """Between two shifts: the noise end (t = 1) carries `low`, the data end (t = 0) `high`.

    `low` <= `high` are reference sizes as in `Shifted`. The coarse reference leaves enough noise
    at t = 1 to destroy the layout; the fine one spends the other end on detail.
    Source: Hoogeboom et al. 2023, section 3.1 (with t = 1 as noise).
    """

    base: Schedule
    image_size: int
    low: int
    high: int

    def __post_init__(self) -> None:
        _check_sizes(image_size=self.image_size, low=self.low, high=self.high)
        if self.low > self.high:
            raise ValueError(
                f"low={self.low} must not exceed high={self.high}: both are reference sizes, low "
                "for the noise end; swapped, λ is not monotone in general"
            )

    def __call__(self, t: Tensor) -> Tensor:
        t = at_least_float32(t)
        low = 2.0 * math.log(self.low / self.image_size)
        high = 2.0 * math.log(self.high / self.image_size)
        return self.base(t) + t * low + (1.0 - t) * high

    def derivative(self, t: Tensor) -> Tensor:
        return self.base.derivative(t) - 2.0 * math.log(self.high / self.low)


def _scalar(value: float) -> Tensor:
    """In float64 on the CPU, where it can be read even while the default device is another."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _logsnr_from_decay(decay: Tensor) -> Tensor:
    """λ = -log(expm1(B)) for ᾱ = e^-B, in a form that does not overflow."""
    return -decay - torch.log(-torch.expm1(-decay))


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size <= 0:
            raise ValueError(f"{name}={size} must be a positive number of pixels")
