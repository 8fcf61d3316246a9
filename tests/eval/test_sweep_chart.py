import io

import numpy as np
import pytest
from PIL import Image

from eval.sweep_chart import sweep_picture

BLUE, ORANGE = (0x16, 0x68, 0xB8), (0xC4, 0x54, 0x1C)


def columns(picture: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a colour is, as shares of the picture's width."""
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    return np.nonzero((pixels == colour).all(-1))[1] / pixels.shape[1]


@pytest.mark.parametrize(
    ("losses", "low", "high"), [([3.0, 1.0, 2.0], 0.4, 0.7), ([1, 2, 3], 0, 0.3)]
)
def test_the_lowest_one_is_marked(losses: list[float], low: float, high: float) -> None:
    marked = columns(sweep_picture([0.05, 0.10, 0.15], losses), ORANGE)
    assert len(marked) > 10
    assert low < marked.min() < marked.max() < high


def test_the_line_goes_from_end_to_end() -> None:
    line = columns(sweep_picture([0.05, 0.10, 0.15], [3.0, 1.0, 2.0]), BLUE)
    assert line.min() < 0.25
    assert line.max() > 0.85


@pytest.mark.parametrize("losses", [[0.5, 0.5], [1e-7, 2e-7]])
def test_losses_that_hardly_differ(losses: list[float]) -> None:
    assert len(columns(sweep_picture([0.05, 0.10], losses), BLUE))
