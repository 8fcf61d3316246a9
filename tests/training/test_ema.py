"""EMA against its closed form."""

import math

import pytest
import torch
from torch import nn

from simple_diffusion.training.ema import Ema, power_decay, power_exponent


@pytest.mark.parametrize(("length", "exponent"), [(0.05, 16.9722), (0.10, 6.93720)])
def test_power_exponent_matches_published_values(length: float, exponent: float) -> None:
    assert power_exponent(length) == pytest.approx(exponent, abs=5e-5)


@pytest.mark.parametrize("length", [0.03, 0.1, 0.2])
def test_exponent_gives_the_profile_its_relative_width(length: float) -> None:
    """w(x) ∝ x^γ on [0, 1] has E[x] = (γ+1)/(γ+2) and E[x²] = (γ+1)/(γ+3)."""
    g = power_exponent(length)
    variance = (g + 1) / (g + 3) - ((g + 1) / (g + 2)) ** 2
    assert math.sqrt(variance) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("length", [0.0, -0.1, 12**-0.5, 0.4])
def test_impossible_lengths_are_refused(length: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        power_exponent(length)


def test_average_equals_the_power_weights_in_float64() -> None:
    """Weight of the value taken in at n_k is (n_k^(γ+1) - n_(k-1)^(γ+1)) / n^(γ+1)."""
    network = nn.Linear(3, 2)
    ema = Ema(network, [0.05, 0.2], every_steps=1)
    times, values = [], []
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 41):
        with torch.no_grad():
            network.weight.copy_(torch.randn(2, 3, generator=generator))
        times.append(step * 7)
        values.append(network.weight.detach().double().clone())
        ema.update(network, step, step * 7)
    for name, length in (("ema_0.050", 0.05), ("ema_0.200", 0.2)):
        power = power_exponent(length) + 1.0
        edges = [0, *times]
        shares = [
            (b**power - a**power) / times[-1] ** power for a, b in zip(edges, times, strict=False)
        ]
        expected = sum(share * value for share, value in zip(shares, values, strict=True))
        actual = ema.networks[name].weight.double()
        assert torch.allclose(actual, expected, atol=1e-6, rtol=0), name
        assert sum(shares) == pytest.approx(1.0)


def test_interval_changes_when_but_not_what_is_forgotten() -> None:
    """Updating every 4 steps weighs each taken value by its whole interval."""
    network = nn.Linear(1, 1, bias=False)
    ema = Ema(network, [0.1], every_steps=4)
    for step in range(1, 9):
        network.weight.data.fill_(float(step))
        ema.update(network, step, 8 * step)
    share = (32 / 64) ** (power_exponent(0.1) + 1.0)
    expected = share * 4.0 + (1.0 - share) * 8.0
    assert ema.networks["ema_0.100"].weight.item() == pytest.approx(expected, rel=1e-6)
    assert ema.updated_at == 64


def test_first_update_is_a_copy_and_state_stays_float32() -> None:
    network = nn.Linear(2, 2).to(torch.bfloat16)
    ema = Ema(network, [0.1], every_steps=1)
    network.weight.data.fill_(3.0)
    ema.update(network, 1, 64)
    average = ema.networks["ema_0.100"].weight
    assert average.dtype == torch.float32
    assert torch.equal(average, torch.full((2, 2), 3.0))
    assert power_decay(5.0, 64, 0) == 0.0
