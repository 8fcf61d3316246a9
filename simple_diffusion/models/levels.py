"""One resolution of the U: residual blocks on the way down, their mirror images on the way up."""

from typing import Literal

import torch
from torch import Tensor, nn

from simple_diffusion.models.blocks import ConvBlock, Downsample, Upsample

Skips = Literal["block", "level"]


class Level(nn.Module):
    """Residual blocks and a halving of the grid; then a doubling and as many blocks.

    The two ways are joined by skips. ``block``: the output of each block on the way down is
    concatenated to the input of its mirror image. ``level``: x = up(x - h_after) + h_before,
    with h_before and h_after around the halving (SiD2, Hoogeboom et al. 2024); what happened
    below is passed up as a change, so a level whose inside does nothing is the identity.

    Args:
        width: channels at this resolution.
        below: channels at the next lower resolution.
        blocks: residual blocks, each way.
        condition_width: size of the conditioning vector.
        dropout: probability in the residual blocks.
        skips: kind of skip.
    """

    def __init__(
        self,
        width: int,
        below: int,
        blocks: int,
        *,
        condition_width: int,
        dropout: float,
        skips: Skips,
    ) -> None:
        super().__init__()
        self.width, self.below, self.skips = width, below, skips
        inputs = 2 * width if skips == "block" else width
        self.down_blocks = nn.ModuleList(
            ConvBlock(width, width, condition_width, dropout) for _ in range(blocks)
        )
        self.downsample = Downsample(width, below)
        self.upsample = Upsample(below, width)
        self.up_blocks = nn.ModuleList(
            ConvBlock(inputs, width, condition_width, dropout) for _ in range(blocks)
        )

    def down(self, h: Tensor, condition: Tensor, saved: list[Tensor]) -> Tensor:
        """Map (B, width, H, W) -> (B, below, H/2, W/2), pushing what `up` needs on `saved`."""
        for block in self.down_blocks:
            h = block(h, condition)
            if self.skips == "block":
                saved.append(h)
        after: Tensor = self.downsample(h)
        if self.skips == "level":
            saved += [h, after]
        return after

    def up(self, h: Tensor, condition: Tensor, saved: list[Tensor]) -> Tensor:
        """Map (B, below, H/2, W/2) -> (B, width, H, W), popping what `down` pushed."""
        if self.skips == "level":
            after, before = saved.pop(), saved.pop()
            h = self.upsample(h - after) + before
        else:
            h = self.upsample(h)
        for block in self.up_blocks:
            if self.skips == "block":
                h = torch.cat((h, saved.pop()), dim=1)
            h = block(h, condition)
        return h

    def extra_repr(self) -> str:
        return f"width={self.width}, below={self.below}, skips={self.skips}"
