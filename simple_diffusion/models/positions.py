"""Where a token is: learned tables, or rotations of queries and keys."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simple_diffusion.models.layers import tag

Positions = Literal["learned", "rotary"]
Rotation = tuple[Tensor, Tensor]

# Image grids are short (16-64 tokens a side): wavelengths from 2π to 2π·100 tokens cover them,
# where the 10,000 usual for text would leave most of the channels standing still.
ROTARY_BASE = 100.0


class LearnedPositions(nn.Module):
    """A learned vector for every cell of a square grid, added to the tokens.

    Another grid gets the table resampled bicubically, so positions keep their meaning relative
    to the image and resolution may change after training.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side, self.width = side, width
        self.table = nn.Parameter(torch.empty(width, side, side))
        nn.init.normal_(tag(self.table, "no_decay"), std=0.02)

    def forward(self, rows: int, columns: int) -> Tensor:
        """Positions for a grid, shape (rows·columns, width), float32 or the table's dtype."""
        table: Tensor = self.table
        if (rows, columns) != (self.side, self.side):
            table = F.interpolate(table[None], (rows, columns), mode="bicubic")[0]
        return table.flatten(1).t()

    def extra_repr(self) -> str:
        return f"side={self.side}, width={self.width}"


def axial_rotation(
    rows: int, columns: int, head_dim: int, device: torch.device | None = None
) -> Rotation:
    """Cosines and sines of the 2-D rotary embedding (Su et al. 2021, one axis per half).

    Positions count tokens, whatever the grid: attention between two tokens depends on their
    offset alone, and a larger grid needs nothing new.

    Args:
        rows: height of the grid.
        columns: width of the grid.
        head_dim: channels of a head, divisible by 4.
        device: where to make the tables.

    Returns:
        (cos, sin), each float32 of shape (rows·columns, head_dim/2): the first half of the last
        axis turns with the row, the second with the column.
    """
    count = head_dim // 4
    steps = torch.arange(count, device=device, dtype=torch.float32)
    frequencies = ROTARY_BASE ** (-steps / count)
    y = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * frequencies
    x = torch.arange(columns, device=device, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat(
        (
            y[:, None, :].expand(rows, columns, count),
            x[None, :, :].expand(rows, columns, count),
        ),
        dim=-1,
    ).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate channel pairs (i, i + d/2) of `x` by the angles of their token.

    Args:
        x: shape (B, L, ..., d), queries or keys, float32 or better.
        rotation: what `axial_rotation` returned for these L tokens and this d.

    Returns:
        Tensor like `x`.
    """
    shape = (-1,) + (1,) * (x.ndim - 3) + (x.shape[-1] // 2,)
    cos, sin = (part.view(shape) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
