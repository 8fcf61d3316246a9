"""The two ends of the network: pixels to features, and features back to pixels."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from simple_diffusion.models.blocks import modulated_norm
from simple_diffusion.models.layers import (
    GroupNorm,
    at_least_float32,
    conv,
    full_precision,
    linear,
)
from simple_diffusion.models.wavelets import inverse_packet, packet

StemName = Literal["patch", "haar", "cdf53"]


class PixelTransform(nn.Module):
    """Exactly invertible rearrangement of p x p pixels into channels; it has no parameters.

    Args:
        name: ``patch`` moves pixels, ``haar`` and ``cdf53`` are wavelet packets.
        factor: p, a power of two for the wavelets.

    Raises:
        ValueError: a wavelet with a factor that is not a power of two.
    """

    def __init__(self, name: StemName, factor: int) -> None:
        super().__init__()
        self.steps = factor.bit_length() - 1
        if name != "patch" and factor != 2**self.steps:
            raise ValueError(
                f"patch_size: the {name} stem halves the image each step, so patch_size must be "
                f"a power of two, not {factor}"
            )
        self.name: StemName = name
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, C·p², H/p, W/p)."""
        if self.name == "patch":
            return F.pixel_unshuffle(x, self.factor)
        return packet(x, self.name, self.steps)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, C·p², H/p, W/p) -> images (B, C, H, W)."""
        if self.name == "patch":
            return F.pixel_shuffle(y, self.factor)
        return inverse_packet(y, self.name, self.steps)

    def extra_repr(self) -> str:
        return f"{self.name}, factor={self.factor}"


class Embedding(nn.Module):
    """Transformed pixels to features, optionally through a narrow linear bottleneck.

    The bottleneck is JiT's low-rank patch embedding (Li & He 2025): images lie near a low
    dimensional set, noise does not.

    Args:
        inputs: channels of the transformed pixels.
        width: channels out.
        kernel: side of the convolution, 1 or 3.
        bottleneck: rank, or None for a single layer.
    """

    def __init__(self, inputs: int, width: int, kernel: int, bottleneck: int | None) -> None:
        super().__init__()
        self.narrow = conv(inputs, bottleneck, 1, bias=False) if bottleneck is not None else None
        self.conv = conv(inputs if bottleneck is None else bottleneck, width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, inputs, H, W) -> (B, width, H, W)."""
        x = x.to(self.conv.weight.dtype)
        result: Tensor = self.conv(x if self.narrow is None else self.narrow(x))
        return result

    def extra_repr(self) -> str:
        return f"bottleneck={None if self.narrow is None else self.narrow.out_channels}"


class ConvHead(nn.Module):
    """GroupNorm, SiLU and a 3x3 convolution that starts at zero; the output is float32.

    Full precision, because eight bits of bfloat16 would be the floor of the loss at low noise.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.width, self.outputs = width, outputs
        self.norm = GroupNorm(width)
        self.conv = conv(width, outputs, 3, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Features (B, width, H, W) -> (B, outputs, H, W); the condition is not used."""
        with full_precision(x):
            h = F.silu(self.norm(x))
            return at_least_float32(self.conv(h.to(self.conv.weight.dtype)))

    def extra_repr(self) -> str:
        return f"width={self.width}, outputs={self.outputs}"


class TokenHead(nn.Module):
    """Adaptive LayerNorm and a linear layer, both starting at zero; the output is float32."""

    def __init__(self, width: int, outputs: int, condition_width: int) -> None:
        super().__init__()
        self.width, self.outputs = width, outputs
        self.modulation = linear(condition_width, 2 * width, zero=True)
        self.out = linear(width, outputs, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Features (B, width, H, W), condition (B, condition_width) -> (B, outputs, H, W)."""
        with full_precision(x):
            scale, shift = self.modulation(condition)[:, None, :].chunk(2, dim=-1)
            h = modulated_norm(at_least_float32(x.flatten(2).transpose(1, 2)), scale, shift)
            out = at_least_float32(self.out(h.to(self.out.weight.dtype)))
        return out.transpose(1, 2).unflatten(2, x.shape[2:])

    def extra_repr(self) -> str:
        return f"width={self.width}, outputs={self.outputs}"
