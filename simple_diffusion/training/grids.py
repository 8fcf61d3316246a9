"""Grids of images as PNG files."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from simple_diffusion.diffusion.generate import to_uint8


def image_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Tile images row by row, white where the last row is short.

    Args:
        images: (N, C, H, W) in [-1, 1].
        columns: images a row; None makes the grid about square, wider than high.

    Returns:
        uint8, shape (rows·H, columns·W, C).
    """
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = images.new_ones((rows * columns, channels, height, width))
    tiles[:count] = images
    sheet = tiles.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return to_uint8(sheet.reshape(rows * height, columns * width, channels)).cpu()


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write `image_grid` as a PNG, atomically."""
    sheet = image_grid(images, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    array = sheet.squeeze(-1).numpy()
    Image.fromarray(array).save(temporary, format="PNG")
    temporary.replace(path)


def class_labels(counts: list[int], quantiles: Tensor) -> Tensor:
    """Labels in proportion to class counts: label i is the class that quantile i falls in.

    Args:
        counts: images of each class.
        quantiles: in [0, 1), float64, shape (n,).

    Returns:
        int64, shape (n,).
    """
    edges = torch.tensor(counts, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(edges / edges[-1], quantiles, right=True).clamp(max=len(counts) - 1)
