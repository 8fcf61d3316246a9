"""Compiled and eager networks agree, gradients included.

Not only the loss: inductor on CPU, under bfloat16 autocast, loses the gradient through nearest
`interpolate` while the forward pass stays right.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from simple_diffusion.models.uvit import UViT


def gradients(net: nn.Module, forward: Callable[..., Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 16, 16, generator=generator)
    target = torch.randn(2, 3, 16, 16, generator=generator)
    net.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = forward(z, torch.tensor([-2.0, 3.0]), torch.tensor([0, 2]))
    (out - target).square().mean().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("skips", "positions"), [("block", "learned"), ("level", "rotary")])
def test_compiled_gradients_equal_eager_ones(skips: str, positions: str) -> None:
    torch.manual_seed(0)
    net = UViT(
        image_size=16, patch_size=2, channels=[8, 16], blocks=[1], depth=1, head_dim=8,
        condition_width=8, num_classes=2, stem="haar",
        skips="block" if skips == "block" else "level",
        positions="rotary" if positions == "rotary" else "learned",
    )  # fmt: skip
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    eager = gradients(net, net)
    compiled = gradients(net, torch.compile(net, fullgraph=True))
    assert eager.keys() == compiled.keys() == dict(net.named_parameters()).keys()
    for name, expected in eager.items():
        assert expected.any(), name
        difference = (compiled[name] - expected).norm() / expected.norm()
        assert difference < 0.05, f"{name}: gradient is {difference:.1%} off"
