"""Skipped steps are counted, spikes are found, and NaN spreads from any loss."""

import json
import math

import pytest
import torch

from simple_diffusion.training.health import FEWEST, Health, Sample, poison


def take(health: Health, norm: float, number: int = 1, losses: tuple[float, ...] = (1.0,)) -> None:
    samples = [Sample(10 * number + i, f"key-{i}") for i in range(len(losses))]
    health.take(number, 8 * number, samples, torch.tensor(norm), torch.tensor(losses))


def test_skipped_steps_name_their_samples() -> None:
    health = Health(max_skipped=3, spike_factor=5.0)
    take(health, math.nan, number=2, losses=(1.0, math.nan, math.inf))
    assert health.notes == [
        {
            "kind": "skipped",
            "step": 2,
            "images_seen": 16,
            "samples": [{"position": 21, "key": "key-1"}, {"position": 22, "key": "key-2"}],
        }
    ]
    json.dumps(health.notes)
    assert (health.skipped, health.diverged) == (1, False)


def test_only_so_many_in_a_row() -> None:
    health = Health(max_skipped=3, spike_factor=5.0)
    for norm in (math.nan, math.inf, 1.0, math.nan, -math.inf):
        take(health, norm)
    assert (health.skipped, health.in_row, health.diverged) == (4, 2, False)
    take(health, math.nan)
    assert health.diverged


def test_spikes_are_measured_against_the_median() -> None:
    health = Health(max_skipped=3, spike_factor=5.0)
    for number in range(FEWEST - 1):
        take(health, 100.0 if number == 3 else 1.0)
    assert health.notes == []  # too early to say what is usual
    take(health, 1.0)
    take(health, 4.9)
    assert health.notes == []
    take(health, 5.1, number=30)
    (note,) = health.notes
    assert (note["kind"], note["step"], note["images_seen"]) == ("spike", 30, 240)
    assert (note["grad_norm"], note["median"]) == (pytest.approx(5.1), 1.0)


def test_goes_on_where_it_was() -> None:
    one, other = Health(2, 5.0), Health(2, 5.0)
    for number in range(FEWEST):
        take(one, 1.0 + number)
    take(one, math.nan)
    other.load_state(json.loads(json.dumps(one.state())))
    for health in (one, other):
        health.notes = []
        take(health, 1000.0)
        take(health, math.nan)
        take(health, math.nan)
    assert one.notes == other.notes
    assert one.notes[0]["kind"] == "spike"
    assert (one.skipped, one.diverged) == (other.skipped, other.diverged) == (3, True)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_infinite_loss_with_finite_gradients_is_caught(bad: float) -> None:
    """d(x + bad)/dx is 1 by autograd; the sum over processes must see that something is wrong."""
    x = torch.ones(2, requires_grad=True)
    loss = x.sum() + bad
    loss.backward(gradient=poison(loss.detach()))
    assert x.grad is not None
    assert x.grad.isnan().all()


def test_a_finite_loss_starts_with_one() -> None:
    assert poison(torch.tensor(3.0, dtype=torch.float64)) == torch.tensor(1.0, dtype=torch.float64)
