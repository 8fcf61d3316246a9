"""Parameters and FLOPs against sums written out by hand."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from simple_diffusion.config import ModelConfig, build_network
from simple_diffusion.config_noise import ScheduleConfig
from simple_diffusion.plan.counts import count_flops, count_parameters
from tests.plan.configs import CONV, VIT, small_run

FEATURES = 256  # Fourier features of the noise level
CONDITION = 24


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def transformer_block(tokens: int, width: int) -> int:
    modulation = linear(1, CONDITION, 6 * width)
    projections = linear(tokens, width, 3 * width) + linear(tokens, width, width)
    products = 2 * (2 * tokens * tokens * width)
    mlp = linear(tokens, width, 4 * width) + linear(tokens, 4 * width, width)
    return modulation + projections + products + mlp


def conditioning() -> int:
    return linear(1, FEATURES, CONDITION) + linear(1, CONDITION, CONDITION)


@pytest.mark.parametrize("model", [VIT, CONV, replace(CONV, num_classes=0, positions="rotary")])
def test_parameters_are_the_networks(model: ModelConfig) -> None:
    with torch.device("meta"):
        network = build_network(model, 16)
    counts = count_parameters(small_run(model))
    assert sum(counts.values()) == sum(p.numel() for p in network.parameters())
    assert ("conv levels" in counts) == (len(model.channels) > 1)
    transformer = sum(p.numel() for p in network.transformer.parameters())
    learned = 0 if network.positions is None else network.positions.table.numel()
    assert counts["transformer"] == transformer + learned


def test_flops_of_a_plain_transformer() -> None:
    tokens, width, pixels = 16, 32, 48
    stem = linear(tokens, pixels, width)
    head = linear(1, CONDITION, 2 * width) + linear(tokens, width, pixels)
    forward = conditioning() + stem + 2 * transformer_block(tokens, width) + head
    # Backward costs twice as much, but nobody asks for the gradient of the image or of λ.
    step = 3 * forward - stem - linear(1, FEATURES, CONDITION)
    assert count_flops(small_run(VIT)) == (forward, step)


def test_flops_of_a_convolutional_level() -> None:
    high, low, wide, width, pixels = 64, 16, 8, 16, 12
    stem = linear(high, 9 * pixels, wide)
    modulation = linear(1, CONDITION, 2 * wide)
    down = modulation + 2 * linear(high, 9 * wide, wide) + linear(low, 4 * wide, width)
    skip = linear(high, 2 * wide, wide)
    up_block = modulation + linear(high, 18 * wide, wide) + linear(high, 9 * wide, wide) + skip
    up = linear(low, width, 4 * wide) + up_block
    head = linear(high, 9 * wide, pixels)
    forward = conditioning() + stem + down + transformer_block(low, width) + up + head
    step = 3 * forward - stem - linear(1, FEATURES, CONDITION)
    assert count_flops(small_run(CONV)) == (forward, step)


@pytest.mark.parametrize("model", [VIT, CONV, replace(CONV, skips="level", positions="rotary")])
def test_flops_are_those_of_a_real_step(model: ModelConfig) -> None:
    """With content, on four images, by torch's counter."""
    network = build_network(model, 16)
    images, labels = torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        prediction = network(images, torch.randn(4), labels)
        forward = counter.get_total_flops()
        prediction.square().sum().backward()
    planned_forward, planned_step = count_flops(small_run(model))
    assert planned_forward == pytest.approx(forward / 4, rel=0.03)
    assert planned_step == pytest.approx(counter.get_total_flops() / 4, rel=0.03)


def test_flops_do_not_depend_on_the_batch_or_precision() -> None:
    other = small_run(CONV, train={"batch_size": 64, "precision": "fp32"})
    assert count_flops(other) == count_flops(small_run(CONV))


@pytest.mark.parametrize("name", sorted(ScheduleConfig.get_known_choices()))
def test_the_schedule_costs_nothing(name: str) -> None:
    # the usual reference size is above this image's
    options = {"low": 8} if name == "interpolated" else {}
    schedule = ScheduleConfig.get_choice_class(name)(**options)
    plain = small_run(VIT)
    assert count_flops(replace(plain, schedule=schedule)) == count_flops(plain)
