"""Residual blocks and resampling against their formulas."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simple_diffusion.models.blocks import (
    MLP,
    ConvBlock,
    Downsample,
    SelfAttention,
    TransformerBlock,
    Upsample,
    modulated_norm,
)
from simple_diffusion.models.positions import axial_rotation


def shake(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Random weights everywhere, zeros included, in float64."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.double()


def transformer_block(dropout: float = 0.0) -> TransformerBlock:
    return TransformerBlock(
        16, 6, head_dim=8, mlp_ratio=4, mlp="gelu", qk_norm=True, dropout=dropout, backend="sdpa"
    )


def test_untrained_blocks_are_the_identity() -> None:
    x, condition = torch.randn(2, 16, 4, 4), torch.randn(2, 6)
    assert torch.equal(ConvBlock(16, 16, 6, 0.0)(x, condition), x)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(transformer_block()(tokens, condition, None), tokens)


def test_conv_block_equals_formula() -> None:
    block = ConvBlock(8, 12, 6, 0.0)
    shake(block)
    assert block.shortcut is not None
    x, condition = torch.randn(2, 8, 4, 6).double(), torch.randn(2, 6).double()

    def normed(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
        parts = x.view(2, groups, -1)
        parts = parts - parts.mean(-1, keepdim=True)
        parts = parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return parts.view(x.shape) * weight[:, None, None] + bias[:, None, None]

    h = F.silu(normed(x, block.norm1.weight, block.norm1.bias, 2))
    h = F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    scale, shift = (condition @ block.modulation.weight.T + block.modulation.bias).split(12, 1)
    h = normed(h, block.norm2.weight, block.norm2.bias, block.norm2.groups)
    h = F.silu(h * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = F.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x, condition), shortcut + h)


def test_upsample_starts_as_nearest_and_maps_zero_to_zero() -> None:
    up = Upsample(6, 4)
    x = torch.randn(2, 6, 3, 5)
    out = up(x)
    cells = F.conv2d(x, up.conv.weight[::4])
    torch.testing.assert_close(out, cells.repeat_interleave(2, 2).repeat_interleave(2, 3))
    shake(up)
    assert not up(torch.zeros(1, 6, 2, 2).double()).any()


def test_downsample_sees_each_pixel_in_one_cell_only() -> None:
    down = Downsample(1, 3)
    x = torch.zeros(1, 1, 4, 6)
    base = down(x)
    x[0, 0, 3, 2] = 1.0
    changed = (down(x) != base).any(1)[0].nonzero().tolist()
    assert changed == [[1, 1]]


@pytest.mark.parametrize(
    ("width", "ratio", "hidden"),
    [(768, 4.0, 2048), (1024, 4.0, 2752), (16, 4.0, 64), (96, 4.0, 256)],
)
def test_swiglu_hidden_width(width: int, ratio: float, hidden: int) -> None:
    with torch.device("meta"):
        mlp = MLP(width, ratio, "swiglu")
    assert mlp.hidden == hidden
    assert mlp.inner.weight.shape == (2 * hidden, width)


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
def test_mlp_equals_formula(kind: str) -> None:
    mlp = MLP(8, 2.0, "swiglu" if kind == "swiglu" else "gelu")
    shake(mlp)
    x = torch.randn(2, 3, 8).double()
    h = x @ mlp.inner.weight.T + mlp.inner.bias
    if kind == "swiglu":
        gate, value = h[..., : mlp.hidden], h[..., mlp.hidden :]
        h = gate / (1 + (-gate).exp()) * value
    else:
        h = h * (1 + torch.erf(h / 2**0.5)) / 2
    torch.testing.assert_close(mlp(x), h @ mlp.out.weight.T + mlp.out.bias)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_self_attention_equals_formula(qk_norm: bool, rotary: bool) -> None:
    module = SelfAttention(16, 8, qk_norm, "sdpa")
    shake(module)
    x = torch.randn(2, 6, 16).double()
    rotation = axial_rotation(2, 3, 8) if rotary else None
    out = torch.zeros(2, 6, 16).double()
    projected = x @ module.qkv.weight.T + module.qkv.bias
    for head in range(2):
        q, k, v = (projected[..., 16 * i + 8 * head : 16 * i + 8 * head + 8] for i in range(3))
        if module.qk_scale is not None:
            q = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.qk_scale[0, 0]
            k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.qk_scale[1, 0]
        if rotation is not None:
            cos, sin = (part.double() for part in rotation)
            q, k = (
                torch.cat(
                    (a[..., :4] * cos - a[..., 4:] * sin, a[..., 4:] * cos + a[..., :4] * sin), -1
                )
                for a in (q, k)
            )
        weights = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
        out[..., 8 * head : 8 * head + 8] = weights @ v
    expected = out @ module.out.weight.T + module.out.bias
    torch.testing.assert_close(module(x, rotation), expected)


def test_qk_norm_ignores_the_size_of_queries_and_keys() -> None:
    module = SelfAttention(16, 8, True, "sdpa")
    shake(module)
    x = torch.randn(1, 6, 16).double()
    before = module(x, None)
    with torch.no_grad():
        module.qkv.weight[:32] *= 100
        module.qkv.bias[:32] *= 100
    torch.testing.assert_close(module(x, None), before, rtol=1e-4, atol=1e-4)


def test_transformer_block_equals_formula() -> None:
    block = transformer_block()
    shake(block)
    x, condition = torch.randn(2, 5, 16).double(), torch.randn(2, 6).double()
    modulation = (condition @ block.modulation.weight.T + block.modulation.bias)[:, None]
    scale1, shift1, gate1, scale2, shift2, gate2 = modulation.split(16, -1)

    def normed(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    h = x + gate1 * block.attention(normed(x) * (1 + scale1) + shift1, None)
    h = h + gate2 * block.mlp(normed(h) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, condition, None), h)
    torch.testing.assert_close(modulated_norm(x, scale1, shift1), normed(x) * (1 + scale1) + shift1)


def test_dropout_acts_in_training_only() -> None:
    x, condition = torch.randn(2, 16, 4, 4).double(), torch.randn(2, 6).double()
    tokens = x.flatten(2).transpose(1, 2)
    conv_block, block = ConvBlock(16, 16, 6, 0.5), transformer_block(0.5)
    shake(conv_block)
    shake(block)
    assert not torch.equal(conv_block(x, condition), conv_block(x, condition))
    assert not torch.equal(block(tokens, condition, None), block(tokens, condition, None))
    conv_block.eval()
    block.eval()
    assert torch.equal(conv_block(x, condition), conv_block(x, condition))
    assert torch.equal(block(tokens, condition, None), block(tokens, condition, None))
