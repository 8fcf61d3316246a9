"""Aspect bins against logarithms taken one image at a time."""

import math

import numpy as np
import pytest

from data_pipelines.aspects import (
    MAX_BIN,
    aspect_bins,
    aspect_counts,
    bin_ratio,
    read_aspect_counts,
)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (512, 512, 0),
        (1024, 512, 16),
        (512, 1024, -16),
        (640, 384, 12),  # 16·log2(5/3) = 11.79
        (3, 2, 9),  # 9.36
        (1, 1000, -MAX_BIN),
        (10**9, 1, MAX_BIN),
        (0, 512, 0),
        (512, 0, 0),
    ],
)
def test_bin(width: int, height: int, expected: int) -> None:
    assert aspect_bins(np.array([width]), np.array([height])).tolist() == [expected]


def test_all_sizes_up_to_a_hundred() -> None:
    sides = np.arange(1, 101)
    widths, heights = (side.ravel() for side in np.meshgrid(sides, sides))
    expected = [
        max(-MAX_BIN, min(MAX_BIN, round(16 * math.log2(w / h))))
        for w, h in zip(widths.tolist(), heights.tolist(), strict=True)
    ]
    assert aspect_bins(widths, heights).tolist() == expected
    inside = np.abs(np.array(expected)) < MAX_BIN
    error = np.log2(widths / heights) - np.log2(bin_ratio(np.array(expected)))
    assert np.abs(error[inside]).max() <= 1 / 32 + 1e-12


def test_counts() -> None:
    widths, heights = np.array([10, 20, 10, 0, 5]), np.array([10, 10, 20, 7, 5])
    assert aspect_counts(widths, heights) == "-16:1 0:3 16:1"
    assert read_aspect_counts("-16:1 0:3 16:1") == {-16: 1, 0: 3, 16: 1}
    nothing = np.array([], dtype=np.int64)
    assert aspect_counts(nothing, nothing) == ""
    assert read_aspect_counts("") == {}


@pytest.mark.parametrize(
    "text", ["x", "1", "1:", "1:-2", "0:1  2:3", "65:1", "0:1 0:2", "1:1,2:2", "0:1 ", "٣:1"]
)
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no aspect bin"):
        read_aspect_counts(text)
