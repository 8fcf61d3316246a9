"""Aspect ratios in fine steps, so that a manifest can say how many images of each shard have which.

An image's aspect bin is 64·log2(width / height), rounded: neighbours differ by 1.1%. Everything
that groups images by shape goes by their bins, so the manifest's counts are exact for any grouping.
"""

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 64
MAX_BIN = 4 * BINS_PER_OCTAVE  # 16:1; what is longer counts as that


def aspect_bins(widths: NDArray[np.integer], heights: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns the aspect bin of each image; that of a square where a size is not known (0).

    Args:
        widths: Upright widths in pixels, shape (n,).
        heights: Upright heights likewise.
    """
    known = (widths > 0) & (heights > 0)
    ratios = np.where(known, widths, 1) / np.where(known, heights, 1)
    bins = np.rint(BINS_PER_OCTAVE * np.log2(ratios)).astype(np.int64)
    clipped: NDArray[np.int64] = np.clip(bins, -MAX_BIN, MAX_BIN)
    return clipped


def aspect_counts(
    widths: NDArray[np.integer], heights: NDArray[np.integer]
) -> tuple[tuple[int, int], ...]:
    """Returns (aspect bin, number of images) of each bin that occurs, in rising order."""
    bins, counts = np.unique(aspect_bins(widths, heights), return_counts=True)
    return tuple(zip(bins.tolist(), counts.tolist(), strict=True))


def bin_ratio(bins: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns width / height in the middle of each bin."""
    ratios: NDArray[np.float64] = np.exp2(bins / BINS_PER_OCTAVE)
    return ratios
