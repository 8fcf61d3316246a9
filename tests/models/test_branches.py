import math

import pytest
import torch
from torch import Tensor

from simple_diffusion.models.blocks import TransformerBlock
from simple_diffusion.models.branches import start_branches
from simple_diffusion.models.uvit import UViT

SHAPE = {"image_size": 16, "channels": (16, 64), "blocks": (1,), "depth": 3, "head_dim": 16}


def network(**options: object) -> UViT:
    torch.manual_seed(0)
    return UViT(**{**SHAPE, **options})  # type: ignore[arg-type]


def branch_ends(net: UViT) -> dict[str, Tensor]:
    ends = ("conv2.weight", "attention.out.weight", "mlp.out.weight")
    return {name: p for name, p in net.named_parameters() if name.endswith(ends)}


@pytest.mark.parametrize("how", ["small", "default"])
def test_spread_of_the_last_layers(how: str) -> None:
    for name, weight in branch_ends(network(branches=how)).items():
        fan_in = weight[0].numel()
        expected = 0.02 if how == "small" else 1 / math.sqrt(fan_in)
        # the standard deviation of a sample of n has a relative error of 1/sqrt(2n)
        assert abs(weight.std() / expected - 1) < 5 / math.sqrt(2 * weight.numel()), name


def test_zero_is_what_blocks_are_made_with() -> None:
    plain, zero = network(), network(branches="zero")
    for one, two in zip(plain.parameters(), zero.parameters(), strict=True):
        assert torch.equal(one, two)
    assert all(not w.any() for name, w in branch_ends(zero).items() if "conv2" in name)


@pytest.mark.parametrize("how", ["small", "default"])
def test_gates_are_open_and_nothing_else_moves(how: str) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(
        64, 8, head_dim=16, mlp_ratio=2, mlp="gelu", qk_norm=True, dropout=0.0, backend="sdpa"
    )
    before = {name: p.clone() for name, p in block.named_parameters()}
    start_branches(block, how)  # type: ignore[arg-type]
    scale1, shift1, gate1, scale2, shift2, gate2 = block.modulation(torch.randn(1, 8)).chunk(6, -1)
    assert (gate1 == 1).all()
    assert (gate2 == 1).all()
    assert not any(one.any() for one in (scale1, shift1, scale2, shift2))
    moved = {name for name, p in block.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"attention.out.weight", "mlp.out.weight", "modulation.bias"}


@pytest.mark.parametrize("branches", ["zero", "small", "default"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_every_start_can_be_trained(norm: str, branches: str) -> None:
    """The head starts at zero, so it moves first; then every parameter gets a gradient."""
    net = network(norm=norm, branches=branches)
    z, logsnr = torch.randn(2, 3, 16, 16), torch.zeros(2)
    assert not net(z, logsnr).any()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(4):  # a zero passes no gradient to what lies before it: one layer a step
        optimizer.zero_grad()
        (net(z, logsnr) - z).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_post_norm_equals_formula() -> None:
    torch.manual_seed(1)
    block = TransformerBlock(
        32,
        8,
        head_dim=16,
        mlp_ratio=2,
        mlp="gelu",
        qk_norm=True,
        dropout=0.0,
        backend="sdpa",
        norm="post",
    ).double()
    torch.nn.init.normal_(block.modulation.weight, std=0.3)
    x, condition = torch.randn(2, 5, 32).double(), torch.randn(2, 8).double()
    parts = block.modulation(condition)[:, None].chunk(6, -1)
    expected = x
    for branch, (scale, shift, gate) in (
        (lambda h: block.attention(h, None), parts[:3]),
        (block.mlp, parts[3:]),
    ):
        total = expected + gate * branch(expected * (1 + scale) + shift)
        centred = total - total.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(block(x, condition, None), expected)
