"""Grids of images as PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from simple_diffusion.diffusion.generate import to_uint8
from simple_diffusion.diffusion.randomness import uniforms


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
    try:
        Image.fromarray(array).save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # interrupted, or the disk is full


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


def grid_labels(
    seed: int, indices: Sequence[int], counts: Sequence[int], null_label: int | None
) -> Tensor | None:
    """The class of image number i of a set, for each index: drawn in proportion to `counts`.

    Args:
        seed: names the set, as in `diffusion.generate.generate`.
        indices: numbers of the images.
        counts: images of each class; where they are all 0, the null class is given.
        null_label: the null class; None for an unconditional network.

    Returns:
        int64, shape (len(indices),); None for an unconditional network.
    """
    if null_label is None:
        return None
    if not sum(counts):
        return torch.full((len(indices),), null_label)
    return class_labels(list(counts), uniforms(seed, "grid classes", indices))
