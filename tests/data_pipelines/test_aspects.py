"""Aspect bins against logarithms taken one image at a time."""

import math

import numpy as np
import pytest

from data_pipelines.aspects import MAX_BIN, aspect_bins, aspect_counts, bin_ratio


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (512, 512, 0),
        (1024, 512, 64),
        (512, 1024, -64),
        (640, 384, 47),  # 64·log2(5/3) = 47.17
        (3, 2, 37),  # 37.44
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
        max(-MAX_BIN, min(MAX_BIN, round(64 * math.log2(w / h))))
        for w, h in zip(widths.tolist(), heights.tolist(), strict=True)
    ]
    assert aspect_bins(widths, heights).tolist() == expected
    inside = np.abs(np.array(expected)) < MAX_BIN
    error = np.log2(widths / heights) - np.log2(bin_ratio(np.array(expected)))
    assert np.abs(error[inside]).max() <= 1 / 128 + 1e-12


def test_counts() -> None:
    widths, heights = np.array([10, 20, 10, 0, 5]), np.array([10, 10, 20, 7, 5])
    assert aspect_counts(widths, heights) == ((-64, 1), (0, 3), (64, 1))
    nothing = np.array([], dtype=np.int64)
    assert aspect_counts(nothing, nothing) == ()
