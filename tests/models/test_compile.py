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


def deep_net() -> UViT:
    """Two levels and several blocks in each, in float64, away from the start's zeros."""
    torch.manual_seed(0)
    net = UViT(
        image_size=32, patch_size=2, channels=[8, 16, 32], blocks=[1, 2], depth=2, head_dim=16,
        condition_width=16, num_classes=2, dropout=0.1,
    )  # fmt: skip
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.double()


def exact_loss(net: UViT) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    z, target = (
        torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    torch.manual_seed(2)  # dropout's
    out = net(z, torch.tensor([-2.0, 3.0], dtype=torch.float64), torch.tensor([0, 2]))
    return (out - target).square().mean()


def exact_gradients(net: UViT) -> dict[str, Tensor]:
    exact_loss(net).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def kept_bytes(net: UViT) -> int:
    """What a forward pass keeps for the backward pass."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        exact_loss(net)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(storages.values())


@pytest.mark.slow
def test_blocks_compiled_one_by_one_have_the_eager_gradients() -> None:
    """In float64, where nothing but a wrong kernel makes a difference."""
    eager = exact_gradients(deep_net().eval())
    net = deep_net().eval()
    keys = net.state_dict().keys()
    net.compile_blocks()
    net.recompute([0, 2])
    assert net.state_dict().keys() == keys
    compiled = exact_gradients(net)
    assert compiled.keys() == eager.keys() == dict(net.named_parameters()).keys()
    for name, expected in eager.items():
        assert (compiled[name] - expected).norm() <= 1e-10 * expected.norm(), name


def test_recomputed_blocks_have_the_same_gradients_and_keep_less() -> None:
    """Dropout included."""
    net = deep_net()
    net.recompute([0, 1, 2])
    assert kept_bytes(net) < 0.5 * kept_bytes(deep_net())
    assert net.state_dict().keys() == deep_net().state_dict().keys()
    whole, again = exact_gradients(deep_net()), exact_gradients(net)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_levels_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="levels 0 to 2, of which 2 is the transformer"):
        deep_net().recompute([3])
