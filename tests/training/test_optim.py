"""Parameter groups and the learning rate."""

import pytest
import torch
from torch import nn

from simple_diffusion.training.optim import adamw, learning_rate


def tagged() -> nn.Linear:
    layer = nn.Linear(2, 2)
    layer.weight.optim_group = "decay"  # type: ignore[attr-defined]
    layer.bias.optim_group = "no_decay"  # type: ignore[attr-defined]
    return layer


def test_decay_shrinks_only_the_tagged_weights() -> None:
    layer = tagged()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = adamw(layer, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(layer.weight, before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before["bias"])


def test_rate_rises_holds_and_falls() -> None:
    def rate(images: int) -> float:
        return learning_rate(
            images, peak=2.0, warmup_images=100, decay_images=200, total_images=1000
        )

    values = [rate(n) for n in (50, 100, 500, 800, 900, 1000, 1010)]
    assert values == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0])


def test_rate_without_warmup_or_decay_is_flat() -> None:
    values = {
        learning_rate(n, peak=0.5, warmup_images=0, decay_images=0, total_images=10)
        for n in (1, 5, 10)
    }
    assert values == {0.5}
