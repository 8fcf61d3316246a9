"""Exponential moving averages of the weights with power-function profiles, in float32."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

MAX_LENGTH = 12**-0.5  # of the flat profile, γ = 0


def power_exponent(length: float) -> float:
    """γ of the profile w(n) ∝ n^γ whose relative standard deviation is `length`.

    Solves γ³ + 7γ² + (16 - ς⁻²)γ + 12 - ς⁻² = 0. Source: Karras et al. 2024 (EDM2), section 3.1.

    Raises:
        ValueError: if `length` is not in (0, 1/√12): no γ > 0 is that wide.
    """
    if not 0.0 < length < MAX_LENGTH:
        raise ValueError(f"EMA length {length} must lie in (0, {MAX_LENGTH:.4f})")
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def power_weight(exponent: float, images: int, updated_at: Tensor) -> Tensor:
    """1 - β for an update at `images` seen, the last having been at `updated_at`.

    β = (1 - Δn/n)^(γ+1) gives each weight exactly its share of the profile, whatever the interval.
    The first update (`updated_at` 0) has weight 1: it is a copy, so the average never remembers
    initialisation.

    Args:
        exponent: γ.
        images: n.
        updated_at: n - Δn, a float64 0-d tensor on any device.

    Returns:
        A float64 0-d tensor on the same device. Small weights keep all their digits.
    """
    since = (images - updated_at) / images
    return -torch.expm1((exponent + 1.0) * torch.log1p(-since))


def ema_name(length: float) -> str:
    """What an average is called in checkpoints and on the command line."""
    return f"ema_{length:.3f}"


class Ema:
    """One average of a network's parameters for each length.

    Where the parameters are cut up between processes, so are the averages, in the same way: each
    process averages its own shard, and nothing is sent.

    Args:
        parameters: name -> parameter of the network being trained, plain or DTensor.
        lengths: averaging widths, as shares of training so far; the first is the main one.
        every_steps: update interval. In float32, averages updated at every step of a very long run
            stall: the increments fall below rounding.

    Raises:
        ValueError: a length that no profile has, or two with one name.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], lengths: Sequence[float], every_steps: int
    ) -> None:
        self.every_steps = every_steps
        self.exponents = {ema_name(length): power_exponent(length) for length in lengths}
        if len(self.exponents) < len(lengths):
            raise ValueError(f"ema.lengths {list(lengths)} must differ in the first three decimals")
        self._averages = {
            name: {key: p.detach().to(torch.float32, copy=True) for key, p in parameters.items()}
            for name in self.exponents
        }
        device = next(iter(parameters.values())).device
        self._updated_at = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def names(self) -> list[str]:
        """Names of the averages, in the order of their lengths in the config."""
        return list(self.exponents)

    @property
    def main(self) -> str:
        """Name of the first length, which draws the pictures."""
        return self.names[0]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """An average: name of a parameter -> float32 tensor, cut up as the parameter is.

        They are the averages themselves: who fills them in place restores them.
        """
        return dict(self._averages[name])

    @torch.no_grad()
    def update(
        self,
        parameters: Mapping[str, Tensor],
        step: int,
        images_seen: int,
        finite: Tensor | None = None,
    ) -> None:
        """Take in the weights after optimiser step number `step`, if an update is due.

        Nothing here waits for the device.

        Args:
            parameters: as at the start.
            step: number of the step, from 1.
            images_seen: images seen at the end of it.
            finite: bool, 0-d, on the device; False for a skipped step. Then no bit changes,
                whatever the parameters are, and the next update counts from the last one done.
        """
        if step % self.every_steps:
            return
        if finite is not None and finite.device.type == "cpu":  # looking costs nothing there
            if not finite:
                return
            finite = None
        for name, exponent in self.exponents.items():
            average = self._averages[name]
            assert average.keys() == parameters.keys(), "other parameters than at the start"
            weight = power_weight(exponent, images_seen, self._updated_at).float()
            for key, parameter in parameters.items():
                _lerp(_local(average[key]), _local(parameter), weight, finite)
        if finite is None:
            self._updated_at.fill_(images_seen)
        else:
            self._updated_at.masked_fill_(finite, images_seen)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors. It waits for the device."""
        return {"updated_at": int(self._updated_at)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._updated_at.fill_(int(state["updated_at"]))


def _local(tensor: Tensor) -> Tensor:
    """This process's part, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _lerp(average: Tensor, current: Tensor, weight: Tensor, finite: Tensor | None) -> None:
    current = current.to(average.dtype)
    if finite is None:
        average.lerp_(current, weight)
    else:
        # A weight of zero would not do: it turns -0 into 0, and 0·nan into nan.
        moved = torch.lerp(average, current, weight)
        torch.where(finite, moved, average, out=average)
