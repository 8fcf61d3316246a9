"""Live bytes against arithmetic."""

import torch
from torch.nn import functional as F

from simple_diffusion.plan.live import LiveMemory


def total(memory: LiveMemory) -> int:
    return sum(memory.live.values())


def test_storages_are_counted_once_and_until_they_are_freed() -> None:
    memory = LiveMemory()
    with memory:
        x = torch.empty(1000)
        assert total(memory) == 4000
        view = x.view(10, 100)[3:]
        view += 1.0
        assert total(memory) == 4000
        half = x.to(torch.bfloat16)
        assert total(memory) == 6000
        del x
        assert total(memory) == 6000  # the view holds it
        del view
        assert total(memory) == 2000
        del half
        assert total(memory) == 0
    assert list(memory.trace) == [1, 4000, 2, 2000, 1, -4000, 2, -2000]


def test_peak_is_the_largest_moment_not_the_sum() -> None:
    memory = LiveMemory()
    with memory:
        x = torch.empty(1000)
        memory.claim("weights", [x])
        x = torch.sin(torch.cos(torch.exp(x)))  # never more than three at once
        assert memory.peak == dict.fromkeys(memory.peak, 0) | {
            "weights": 4000,
            "activations": 8000,
        }
        assert total(memory) == 4000
        memory.forget_peak()
        assert sum(memory.peak.values()) == 4000


def test_what_autograd_saves_lives_until_backward() -> None:
    memory = LiveMemory()
    with memory:
        x = torch.empty(1000, requires_grad=True)
        y = x.sin().exp().sum()  # the result of sin is not kept, x and the result of exp are
        assert total(memory) == 4000 + 4000 + 4
        y.backward()
        assert x.grad is not None
        memory.claim("gradients", [x.grad])
        assert memory.live["gradients"] == 4000
        assert total(memory) == 4000 + 4000 + 4


def test_autocast_keeps_the_weights_it_has_cast() -> None:
    memory = LiveMemory()
    with memory:
        weight = torch.empty(100, 100, requires_grad=True)
        x = torch.empty(7, 100, dtype=torch.bfloat16)
        before = total(memory)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            F.linear(x, weight)
            assert total(memory) == before + 2 * 100 * 100
            F.linear(x, weight)
            assert total(memory) == before + 2 * 100 * 100
        assert total(memory) == before


def test_nothing_is_allocated() -> None:
    memory = LiveMemory()
    with memory:
        x = torch.empty(10**6, 10**6)  # 4 TB
        assert (x @ x).shape == x.shape
        assert sum(memory.peak.values()) == 2 * 4 * 10**12
        assert int(x[0, 0]) == 0


def test_values_are_there_where_faking_is_off() -> None:
    memory = LiveMemory()
    with memory:
        z = torch.empty(100)
        with memory.faking(False):
            levels = torch.tensor([3.0, 4.0])
            z = z * levels[1].item()
            with memory.faking(True):
                z = z + torch.empty(100)
        assert levels.tolist() == [3.0, 4.0]
        assert total(memory) == 400 + 8
