"""Ways from noise to data that are walked in even steps: of t, of λ, or of τ.

A position s in [0, 1] says how far from the data a point of the way is: s = 1 is pure noise, s = 0
the data. With the spacing ``t`` it is the schedule's time itself.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from simple_diffusion.diffusion.logsnr import logsnr_from_tau, tau_from_logsnr
from simple_diffusion.diffusion.schedules import Schedule

Spacing = Literal["t", "logsnr", "tau"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)


def ends_of(schedule: Schedule) -> tuple[float, float]:
    """(λ at t = 1, λ at t = 0): noise, then data."""
    noise, data = schedule(torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")).tolist()
    return noise, data


def point(
    schedule: Schedule, spacing: Spacing, position: Tensor, data: float | None = None
) -> tuple[Tensor, Tensor]:
    """Where a position on the way is.

    Args:
        schedule: t -> λ.
        spacing: in what equal differences of the position are equal steps.
        position: s in [0, 1], of any shape.
        data: λ at s = 0; None for the schedule's own end.

    Returns:
        (t, λ), float64, of the shape of `position`.

    Raises:
        ValueError: an unknown spacing.
    """
    if spacing == "t":
        s = position.double()
        t = s if data is None else s + (1.0 - s) * schedule.inverse(torch.full_like(s, data))
        return t, schedule(t)
    logsnr = logsnr_at(schedule, spacing, position, data)
    return schedule.inverse(logsnr), logsnr


def logsnr_at(
    schedule: Schedule, spacing: Spacing, position: Tensor, data: float | None = None
) -> Tensor:
    """λ of `point`, without the time, which some schedules must search for."""
    s = position.double()
    noise, last = ends_of(schedule)
    if data is not None:
        last = data
    if spacing == "t":
        return point(schedule, spacing, s, data)[1]
    if spacing == "logsnr":
        return last + s * (noise - last)
    if spacing == "tau":
        start, stop = _tau(noise), _tau(last)
        return logsnr_from_tau(stop + s * (start - stop))
    raise ValueError(f"unknown spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")


def position(schedule: Schedule, spacing: Spacing, t: Tensor) -> Tensor:
    """The position of the time t: the inverse of `point`; float64, of the shape of `t`."""
    t = t.double()
    if spacing == "t":
        return t
    noise, data = ends_of(schedule)
    logsnr = schedule(t)
    if spacing == "logsnr":
        return (logsnr - data) / (noise - data)
    if spacing == "tau":
        start, stop = _tau(noise), _tau(data)
        return (tau_from_logsnr(logsnr) - stop) / (start - stop)
    raise ValueError(f"unknown spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")


def position_per_tau(schedule: Schedule, spacing: Spacing, t: Tensor) -> Tensor:
    """ds/dτ at the time t, positive; float64, of the shape of `t`.

    From dλ/dτ = -2/(τ(1-τ)) and the schedule's dλ/dt.
    """
    t = t.double()
    noise, data = ends_of(schedule)
    if spacing == "tau":
        return torch.ones_like(t) / (_tau(noise) - _tau(data))
    logsnr = schedule(t)
    logsnr_per_tau = -2.0 / (tau_from_logsnr(logsnr) * tau_from_logsnr(-logsnr))
    if spacing == "logsnr":
        return logsnr_per_tau / (noise - data)
    if spacing == "t":
        return logsnr_per_tau / schedule.derivative(t)
    raise ValueError(f"unknown spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")


def _tau(logsnr: float) -> float:
    """Of an end of the schedule, on the host: tensors made of numbers would wait for the device."""
    return 1.0 / (1.0 + math.exp(0.5 * logsnr))
