"""Grids of images."""

from pathlib import Path

import torch
from PIL import Image

from simple_diffusion.training.grids import class_labels, image_grid, save_grid


def test_images_stand_in_reading_order() -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 2, 2)
    sheet = image_grid(images, columns=3)
    assert sheet.shape == (4, 6, 3)
    corners = [sheet[row, column, 0].item() for row in (0, 2) for column in (0, 2, 4)]
    assert corners == [0, 64, 128, 191, 255, 255]  # the sixth place is empty: white


def test_out_of_range_values_are_clamped() -> None:
    sheet = image_grid(torch.tensor([-3.0, 3.0])[:, None, None, None].expand(2, 3, 1, 1), columns=2)
    assert sheet[0, :, 0].tolist() == [0, 255]


def test_saved_grid_is_a_png_of_that_size(tmp_path: Path) -> None:
    save_grid(torch.zeros(7, 3, 8, 8), tmp_path / "new" / "grid.png")
    assert Image.open(tmp_path / "new" / "grid.png").size == (24, 24)


def test_labels_are_in_proportion_to_counts() -> None:
    quantiles = torch.arange(1000, dtype=torch.float64) / 1000
    labels = class_labels([10, 0, 30], quantiles)
    assert torch.bincount(labels, minlength=3).tolist() == [250, 0, 750]
