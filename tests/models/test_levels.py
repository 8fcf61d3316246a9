"""Skips of one resolution level."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simple_diffusion.models.levels import Level, Skips


def make(skips: Skips) -> Level:
    torch.manual_seed(0)
    level = Level(8, 12, 2, condition_width=6, dropout=0.0, skips=skips).double()
    for parameter in level.parameters():
        nn.init.normal_(parameter, std=0.3)
    return level


def recorded(level: Level) -> dict[str, tuple[Any, Tensor]]:
    """Inputs and outputs of the level's children, filled in as they run."""
    seen: dict[str, tuple[Any, Tensor]] = {}
    for name, child in level.named_modules():
        child.register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(name, (inputs[0], output))
        )
    return seen


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    kind = {"generator": generator, "dtype": torch.float64}
    return (
        torch.randn(2, 8, 4, 6, **kind),  # type: ignore[call-overload]
        torch.randn(2, 6, **kind),  # type: ignore[call-overload]
        torch.randn(2, 12, 2, 3, **kind),  # type: ignore[call-overload]
    )


def test_level_skip_is_the_papers_formula(data: tuple[Tensor, Tensor, Tensor]) -> None:
    level = make("level")
    x, condition, change = data
    seen = recorded(level)
    saved: list[Tensor] = []
    after = level.down(x, condition, saved)
    level.up(after + change, condition, saved)
    before = seen["down_blocks.1"][1]
    assert torch.equal(seen["downsample"][0], before)
    expected = level.upsample(after + change - after) + before
    torch.testing.assert_close(seen["up_blocks.0"][0], expected, rtol=0, atol=1e-12)
    assert saved == []


def test_level_skip_is_the_identity_around_nothing(data: tuple[Tensor, Tensor, Tensor]) -> None:
    level = make("level")
    x, condition, _ = data
    seen = recorded(level)
    saved: list[Tensor] = []
    level.up(level.down(x, condition, saved), condition, saved)
    assert torch.equal(seen["up_blocks.0"][0], seen["down_blocks.1"][1])


def test_block_skips_join_mirror_images(data: tuple[Tensor, Tensor, Tensor]) -> None:
    level = make("block")
    x, condition, change = data
    seen = recorded(level)
    saved: list[Tensor] = []
    after = level.down(x, condition, saved)
    out = level.up(after + change, condition, saved)
    assert torch.equal(seen["upsample"][0], after + change)
    first, second = seen["up_blocks.0"][0], seen["up_blocks.1"][0]
    assert torch.equal(first, torch.cat((seen["upsample"][1], seen["down_blocks.1"][1]), 1))
    assert torch.equal(second, torch.cat((seen["up_blocks.0"][1], seen["down_blocks.0"][1]), 1))
    assert out.shape == x.shape
    assert saved == []
