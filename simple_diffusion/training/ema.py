"""Exponential moving averages of the weights with power-function profiles, in float32."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def power_exponent(length: float) -> float:
    """γ of the profile w(n) ∝ n^γ whose relative standard deviation is `length`.

    Solves γ³ + 7γ² + (16 - ς⁻²)γ + 12 - ς⁻² = 0. Source: Karras et al. 2024 (EDM2), section 3.1.

    Raises:
        ValueError: if `length` is not in (0, 1/√12): no γ > 0 is that wide.
    """
    if not 0.0 < length < 12**-0.5:
        raise ValueError(f"EMA length {length} must lie in (0, {12**-0.5:.4f})")
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def power_decay(exponent: float, images: int, previous: int) -> float:
    """β for an update at `images` seen, the last having been at `previous`.

    (1 - Δn/n)^(γ+1) gives each weight exactly its share of the profile, whatever the interval;
    the first update (previous = 0) is a copy, so the average never remembers initialisation.
    """
    return (1.0 - (images - previous) / images) ** (exponent + 1.0)


def ema_name(length: float) -> str:
    """What an average is called in checkpoints and on the command line."""
    return f"ema_{length:.3f}"


class Ema:
    """One averaged copy of a network for each length.

    Args:
        network: the network being trained.
        lengths: averaging widths, as shares of training so far; the first is the main one.
        every_steps: update interval. In float32, averages updated at every step of a very long run
            stall: the increments fall below rounding.
    """

    def __init__(self, network: nn.Module, lengths: Sequence[float], every_steps: int) -> None:
        self.every_steps = every_steps
        self.exponents = {ema_name(length): power_exponent(length) for length in lengths}
        if len(self.exponents) < len(lengths):
            raise ValueError(f"ema.lengths {list(lengths)} must differ in the first three decimals")
        self.networks = {
            name: copy.deepcopy(network).float().requires_grad_(False).eval()
            for name in self.exponents
        }
        self.updated_at = 0

    @property
    def main(self) -> str:
        """Name of the first length, which draws the pictures."""
        return next(iter(self.exponents))

    @torch.no_grad()
    def update(self, network: nn.Module, step: int, images_seen: int) -> None:
        """Take in the weights after optimiser step number `step`, if an update is due."""
        if step % self.every_steps:
            return
        current: list[Tensor] = list(network.parameters())
        for name, exponent in self.exponents.items():
            decay = power_decay(exponent, images_seen, self.updated_at)
            average: list[Tensor] = list(self.networks[name].parameters())
            if decay == 0.0:
                torch._foreach_copy_(average, current)
            else:
                torch._foreach_lerp_(average, current, 1.0 - decay)
            for mine, theirs in zip(self.networks[name].buffers(), network.buffers(), strict=True):
                mine.copy_(theirs)
        self.updated_at = images_seen
