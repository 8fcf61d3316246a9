"""Tagged layers and normalisation."""

import math

import pytest
import torch
from torch import nn

from simple_diffusion.models.layers import GroupNorm, conv, linear, optim_groups, tag


def test_layers_tag_matrices_for_decay_and_nothing_else() -> None:
    module = nn.ModuleList([linear(3, 4), conv(3, 4, 3), GroupNorm(8)])
    groups = optim_groups(module)
    assert all(parameter.ndim > 1 for parameter in groups["decay"])
    assert all(parameter.ndim == 1 for parameter in groups["no_decay"])
    assert (len(groups["decay"]), len(groups["no_decay"])) == (2, 4)


def test_an_untagged_parameter_is_named() -> None:
    untagged = nn.Linear(2, 2)
    module = nn.Sequential(linear(2, 2), untagged)
    with pytest.raises(ValueError, match=r"parameter 1\.weight"):
        optim_groups(module)
    tag(untagged.weight, "decay")
    with pytest.raises(ValueError, match=r"parameter 1\.bias"):
        optim_groups(module)


def test_initial_scale() -> None:
    for layer, fan_in in ((linear(400, 300), 400), (conv(64, 100, 3), 576)):
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.02)
        assert layer.bias is not None
        assert not layer.bias.any()
    assert not linear(4, 4, zero=True).weight.any()


@pytest.mark.parametrize(
    ("width", "groups"),
    [(3, 1), (4, 1), (8, 2), (48, 8), (64, 16), (128, 32), (160, 32), (512, 32)],
)
def test_group_count(width: int, groups: int) -> None:
    norm = GroupNorm(width)
    assert norm.groups == groups
    assert norm(torch.randn(2, width, 2, 2)).shape == (2, width, 2, 2)


def test_group_norm_is_float32_inside() -> None:
    # Mean 100, spread 1: bfloat16 arithmetic would return mostly rounding errors.
    x = (torch.randn(2, 8, 16, 16) + 100).to(torch.bfloat16)
    out = GroupNorm(8)(x)
    assert out.dtype == torch.float32
    groups = x.double().view(2, 2, -1)
    expected = (groups - groups.mean(-1, keepdim=True)) / groups.std(-1, correction=0, keepdim=True)
    torch.testing.assert_close(out.double(), expected.view(x.shape), rtol=0, atol=1e-3)


def test_group_norm_in_pure_bfloat16_and_float64() -> None:
    assert (
        GroupNorm(8).to(torch.bfloat16)(torch.randn(1, 8, 4, 4).bfloat16()).dtype == torch.float32
    )
    assert GroupNorm(8).double()(torch.randn(1, 8, 4, 4).double()).dtype == torch.float64
