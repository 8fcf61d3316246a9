"""EMA against its closed form, alone and with each process averaging its own piece."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from simple_diffusion.training.ema import Ema, _lerp, power_exponent, power_weight
from tests.training.checkpoint_ranks import run_ranks

LENGTHS = (0.05, 0.2)


def shares(times: list[int], length: float) -> list[float]:
    """The weight of the value taken in at n_k: (n_k^(γ+1) - n_(k-1)^(γ+1)) / n^(γ+1)."""
    power = power_exponent(length) + 1.0
    edges = [0, *times]
    return [(b**power - a**power) / times[-1] ** power for a, b in zip(edges, times, strict=False)]


def closed_form(times: list[int], values: list[Tensor], length: float) -> Tensor:
    weights = shares(times, length)
    assert sum(weights) == pytest.approx(1.0)
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for weight, value in zip(weights, values, strict=True):
        total += weight * value.double()
    return total


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


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


def test_lengths_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="first three decimals"):
        Ema({"w": torch.zeros(1)}, [0.05, 0.0501], every_steps=1)


def test_weight_keeps_its_digits_late_in_training() -> None:
    """A billion images in, one step is a millionth of the way, where 1 - β would lose digits."""
    images, since, power = 10**9, 64, 17.0
    exact = -math.expm1(power * math.log1p(-since / images))
    weight = power_weight(power - 1.0, images, torch.tensor(images - since, dtype=torch.float64))
    assert float(weight) == pytest.approx(exact, rel=1e-12)
    assert float(power_weight(5.0, 64, torch.zeros((), dtype=torch.float64))) == 1.0


def test_average_equals_the_power_weights_in_float64() -> None:
    parameter = torch.zeros(2, 3)
    ema = Ema({"w": parameter}, LENGTHS, every_steps=1)
    assert (ema.main, ema.names) == ("ema_0.050", ["ema_0.050", "ema_0.200"])
    times, values = [], []
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 41):
        parameter.copy_(torch.randn(2, 3, generator=generator))
        times.append(step * 7)
        values.append(parameter.clone())
        ema.update({"w": parameter}, step, step * 7)
    for name, length in zip(ema.names, LENGTHS, strict=True):
        expected = closed_form(times, values, length)
        actual = ema.tensors(name)["w"].double()
        assert torch.allclose(actual, expected, atol=1e-6, rtol=0), name


def test_interval_changes_when_but_not_what_is_forgotten() -> None:
    """Updating every 4 steps weighs each taken value by its whole interval."""
    parameter = torch.zeros(1)
    ema = Ema({"w": parameter}, [0.1], every_steps=4)
    for step in range(1, 9):
        parameter.fill_(float(step))
        ema.update({"w": parameter}, step, 8 * step)
    share = (32 / 64) ** (power_exponent(0.1) + 1.0)
    expected = share * 4.0 + (1.0 - share) * 8.0
    assert ema.tensors("ema_0.100")["w"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.state() == {"updated_at": 64}


def test_first_update_is_a_copy_and_state_stays_float32() -> None:
    parameter = torch.zeros(2, 2, dtype=torch.bfloat16)
    ema = Ema({"w": parameter}, [0.1], every_steps=1)
    parameter.fill_(3.0)
    ema.update({"w": parameter}, 1, 64)
    average = ema.tensors("ema_0.100")["w"]
    assert average.dtype == torch.float32
    assert torch.equal(average, torch.full((2, 2), 3.0))


def test_a_skipped_step_changes_no_bit_and_time_goes_on() -> None:
    parameter = torch.tensor([1.0, -0.0, 3.0])
    ema = Ema({"w": parameter}, LENGTHS, every_steps=1)
    ema.update({"w": parameter}, 1, 10, torch.tensor(True))
    before = {name: bits(ema.tensors(name)["w"]) for name in ema.names}
    ema.update({"w": torch.full((3,), math.nan)}, 2, 20, torch.tensor(False))
    assert {name: bits(ema.tensors(name)["w"]) for name in ema.names} == before
    assert ema.state() == {"updated_at": 10}
    last = torch.tensor([2.0, 1.0, 5.0])
    ema.update({"w": last}, 3, 30, torch.tensor(True))
    for name, length in zip(ema.names, LENGTHS, strict=True):
        expected = closed_form([10, 30], [parameter, last], length)
        assert torch.allclose(ema.tensors(name)["w"].double(), expected, atol=1e-6)


@pytest.mark.parametrize("finite", [True, False])
def test_a_device_that_must_not_be_waited_for_gives_the_same_bits(finite: bool) -> None:
    """What runs where looking at the flag would stall the queue."""
    generator = torch.Generator().manual_seed(1)
    average = torch.cat((torch.randn(100, generator=generator), torch.tensor([-0.0])))
    current = torch.randn(101, generator=generator)
    weight = torch.tensor(0.3)
    expected = average.lerp(current, weight) if finite else average.clone()
    if not finite:
        current[::2] = math.nan
    _lerp(average, current, weight, torch.tensor(finite))
    assert bits(average) == bits(expected)


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_waited_for() -> None:
    parameter = torch.randn(1000, device="cuda")
    ema = Ema({"w": parameter}, LENGTHS, every_steps=1)
    flags = [torch.tensor(value, device="cuda") for value in (True, False, True)]
    times, values = [], []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, finite in enumerate(flags, start=1):
            parameter.mul_(1.5)
            ema.update({"w": parameter}, step, 8 * step, finite)
            if step != 2:
                times.append(8 * step)
                values.append(parameter.clone())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, length in zip(ema.names, LENGTHS, strict=True):
        expected = closed_form(times, [value.cpu() for value in values], length)
        assert torch.allclose(ema.tensors(name)["w"].cpu().double(), expected, atol=1e-5)


def test_filling_the_tensors_and_loading_the_state_goes_on_where_it_was() -> None:
    generator = torch.Generator().manual_seed(2)
    values = [torch.randn(5, generator=generator) for _ in range(6)]
    whole, first, second = (Ema({"w": torch.zeros(5)}, LENGTHS, every_steps=1) for _ in range(3))
    for step, value in enumerate(values, start=1):
        whole.update({"w": value}, step, 8 * step)
        if step <= 3:
            first.update({"w": value}, step, 8 * step)
    for name in first.names:
        second.tensors(name)["w"].copy_(first.tensors(name)["w"])
    second.load_state(first.state())
    for step, value in enumerate(values[3:], start=4):
        second.update({"w": value}, step, 8 * step)
    for name in whole.names:
        assert bits(second.tensors(name)["w"]) == bits(whole.tensors(name)["w"])


def _train_sharded(rank: int, group: dist.ProcessGroup, ranks: int) -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 1))  # pieces of unequal size, and none
    fully_shard(network, mesh=init_device_mesh("cpu", (ranks,)))
    parameters = dict(network.named_parameters())
    ema = Ema(parameters, LENGTHS, every_steps=1)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    times, values = [], []
    for step in range(1, 13):
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        finite = step % 5 != 0
        ema.update(parameters, step, 8 * step, torch.tensor(finite))
        if finite:
            times.append(8 * step)
            values.append({name: p.full_tensor().clone() for name, p in parameters.items()})
    worst = 0.0
    for name, length in zip(ema.names, LENGTHS, strict=True):
        for key, average in ema.tensors(name).items():
            assert isinstance(average, DTensor)
            assert average.placements == parameters[key].placements
            expected = closed_form(times, [value[key] for value in values], length)
            worst = max(worst, float((average.full_tensor().double() - expected).abs().max()))
    return {"worst": worst, **ema.state()}


def test_each_process_averages_its_own_piece() -> None:
    for answer in run_ranks(2, _train_sharded, 2):
        assert isinstance(answer, dict), answer
        assert answer["worst"] < 1e-6
        assert answer["updated_at"] == 8 * 12
