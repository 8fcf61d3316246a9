"""Aspect ratios in fine steps, so that a manifest can say how many images of each shard have which.

An image's aspect bin is 16·log2(width / height), rounded: neighbours differ by 4.4%. Everything
that groups images by shape goes by their bins, so the manifest's counts are exact for any grouping.
They are kept as text, `bin:count bin:count ...`: 10^5 shards of images of all shapes need 50 MB.
"""

import re

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 16
_PAIR = re.compile(r"(-?\d{1,3}):(\d{1,18})", re.ASCII)
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


def aspect_counts(widths: NDArray[np.integer], heights: NDArray[np.integer]) -> str:
    """Returns, as text, each aspect bin that occurs and its number of images, in rising order."""
    bins, counts = np.unique(aspect_bins(widths, heights), return_counts=True)
    pairs = zip(bins.tolist(), counts.tolist(), strict=True)
    return " ".join(f"{number}:{count}" for number, count in pairs)


def read_aspect_counts(text: str) -> dict[int, int]:
    """Reads the text of `aspect_counts`: aspect bin -> number of images.

    Raises:
        ValueError: It is not of this form.
    """
    counts: dict[int, int] = {}
    for word in text.split(" ") if text else []:
        match = _PAIR.fullmatch(word)
        if match is None or abs(number := int(match[1])) > MAX_BIN or number in counts:
            raise ValueError(f"{word[:20]!r} is no aspect bin and number of images")
        counts[number] = int(match[2])
    return counts


def bin_ratio(bins: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns width / height in the middle of each bin."""
    ratios: NDArray[np.float64] = np.exp2(bins / BINS_PER_OCTAVE)
    return ratios
