"""Residual blocks between stem and head, and the resampling between grids."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simple_diffusion.models.attention import Backend, attention
from simple_diffusion.models.layers import GroupNorm, at_least_float32, conv, linear, tag
from simple_diffusion.models.positions import Rotation, rotate

MLPKind = Literal["gelu", "swiglu"]
Norm = Literal["pre", "post"]


class ConvBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, steered by scale and shift, around a residual connection.

    The second convolution starts at zero, so the untrained block is its shortcut.

    Args:
        inputs: channels in; more than `width` where a skip is concatenated.
        width: channels out.
        condition_width: size of the conditioning vector.
        dropout: probability, before the second convolution.
    """

    def __init__(self, inputs: int, width: int, condition_width: int, dropout: float) -> None:
        super().__init__()
        self.inputs, self.width, self.dropout = inputs, width, dropout
        self.norm1 = GroupNorm(inputs)
        self.conv1 = conv(inputs, width, 3)
        self.modulation = linear(condition_width, 2 * width, zero=True)
        self.norm2 = GroupNorm(width)
        self.conv2 = conv(width, width, 3, zero=True)
        self.shortcut = conv(inputs, width, 1) if inputs != width else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (B, inputs, H, W) and condition (B, condition_width) -> (B, width, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)).to(self.conv1.weight.dtype))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        h = F.dropout(h, self.dropout, self.training)
        h = self.conv2(h.to(self.conv2.weight.dtype))
        return (x if self.shortcut is None else self.shortcut(x)) + h

    def extra_repr(self) -> str:
        return f"inputs={self.inputs}, width={self.width}, dropout={self.dropout}"


class Downsample(nn.Module):
    """Halve the grid: a 2x2 convolution with stride 2, which sees every pixel once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, inputs, H, W) -> (B, outputs, H/2, W/2)."""
        result: Tensor = self.conv(x)
        return result

    def extra_repr(self) -> str:
        return "factor=2"


class Upsample(nn.Module):
    """Double the grid: a 1x1 convolution to four times the width, shuffled into pixels.

    All four pixels of a cell start with the same weights, which is nearest-neighbour upsampling
    and so free of checkerboards (Aitken et al. 2017), without `interpolate`, whose nearest mode
    loses gradients under torch.compile with bfloat16 autocast on CPU. No bias: zero maps to zero.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(inputs, 4 * outputs, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, inputs, H, W) -> (B, outputs, 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x.to(self.conv.weight.dtype)), 2)

    def extra_repr(self) -> str:
        return "factor=2"


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional RMS-normalised queries and keys and rotations.

    Args:
        width: channels, divisible by `head_dim`.
        head_dim: channels of one head.
        qk_norm: normalise queries and keys (Henry et al. 2020), which keeps logits bounded.
        backend: see `attention`.
    """

    def __init__(self, width: int, head_dim: int, qk_norm: bool, backend: Backend) -> None:
        super().__init__()
        self.width, self.head_dim, self.heads = width, head_dim, width // head_dim
        self.backend = backend
        self.qkv = linear(width, 3 * width)
        self.qk_scale = nn.Parameter(torch.ones(2, 1, head_dim)) if qk_norm else None
        if self.qk_scale is not None:
            tag(self.qk_scale, "no_decay")
        self.out = linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """Tokens (B, L, width) -> (B, L, width)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim))
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        if self.qk_scale is not None or rotation is not None:
            qk = self._prepare(qk, rotation).to(v.dtype)
        out = attention(qk[:, :, 0], qk[:, :, 1], v, self.backend)
        result: Tensor = self.out(out.flatten(2))
        return result

    def _prepare(self, qk: Tensor, rotation: Rotation | None) -> Tensor:
        """Normalise and rotate queries and keys together, (B, L, 2, heads, head_dim)."""
        qk = at_least_float32(qk)
        if self.qk_scale is not None:
            qk = F.rms_norm(qk, (self.head_dim,), eps=1e-6) * self.qk_scale
        if rotation is not None:
            qk = rotate(qk, rotation)
        return qk

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, heads={self.heads}, head_dim={self.head_dim}, "
            f"qk_norm={self.qk_scale is not None}, backend={self.backend}"
        )


class MLP(nn.Module):
    """The per-token network: GELU, or the gated SwiGLU of Shazeer (2020).

    SwiGLU's hidden width is 2/3·ratio·width, to the nearest multiple of 64: three matrices then
    cost about what GELU's two do.
    """

    def __init__(self, width: int, ratio: float, kind: MLPKind) -> None:
        super().__init__()
        self.width, self.kind = width, kind
        if kind == "swiglu":
            self.hidden = max(64, 64 * round(2 / 3 * ratio * width / 64))
        else:
            self.hidden = round(ratio * width)
        self.inner = linear(width, 2 * self.hidden if kind == "swiglu" else self.hidden)
        self.out = linear(self.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, width) -> (B, L, width)."""
        h = self.inner(x)
        if self.kind == "swiglu":
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h)
        result: Tensor = self.out(h)
        return result

    def extra_repr(self) -> str:
        return f"width={self.width}, hidden={self.hidden}, kind={self.kind}"


class TransformerBlock(nn.Module):
    """Attention, then MLP, each under adaLN-zero (Peebles & Xie 2023).

    The condition scales and shifts each branch's input and gates its output; it starts at zero,
    so the untrained block is the identity (with post-norm, a normalisation).

    Args:
        width: channels.
        condition_width: size of the conditioning vector.
        head_dim: channels of one head.
        mlp_ratio: hidden width of the MLP over `width`.
        mlp: kind of MLP.
        qk_norm: normalise queries and keys.
        dropout: probability, on the output of each branch.
        backend: attention backend.
        norm: ``pre`` normalises the input of each branch; ``post`` the sum after it, so that what
            came before is halved in variance by every branch of its size (Vaswani et al. 2017).
    """

    def __init__(
        self,
        width: int,
        condition_width: int,
        *,
        head_dim: int,
        mlp_ratio: float,
        mlp: MLPKind,
        qk_norm: bool,
        dropout: float,
        backend: Backend,
        norm: Norm = "pre",
    ) -> None:
        super().__init__()
        self.width, self.dropout, self.norm = width, dropout, norm
        self.modulation = linear(condition_width, 6 * width, zero=True)
        self.attention = SelfAttention(width, head_dim, qk_norm, backend)
        self.mlp = MLP(width, mlp_ratio, mlp)

    def forward(self, x: Tensor, condition: Tensor, rotation: Rotation | None) -> Tensor:
        """Tokens (B, L, width), condition (B, condition_width) -> (B, L, width), x's dtype."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None, :].chunk(
            6, dim=-1
        )
        h = self.attention(self._modulated(x, scale1, shift1), rotation)
        x = self._added(x, gate1, h)
        h = self.mlp(self._modulated(x, scale2, shift2))
        return self._added(x, gate2, h)

    def _modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if self.norm == "pre":
            return modulated_norm(x, scale, shift)
        return torch.addcmul(shift, x, 1 + scale).to(scale.dtype)

    def _added(self, x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
        x = torch.addcmul(x, gate, F.dropout(h, self.dropout, self.training))
        return x if self.norm == "pre" else F.layer_norm(x, x.shape[-1:], eps=1e-6)

    def extra_repr(self) -> str:
        return f"width={self.width}, dropout={self.dropout}, norm={self.norm}"


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without parameters, then ·(1 + scale) + shift; shapes (B, L, D), (B, 1, D).

    The result has scale's dtype, that in which the layers around compute.
    """
    normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift, normed, 1 + scale).to(scale.dtype)
