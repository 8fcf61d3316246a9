"""Aspect-ratio buckets: the image shapes of a run, and which of them an image goes to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.order.labels import Ints

Shape = tuple[int, int]  # height, width


def bucket_shapes(image_size: int, *, max_aspect: float, multiple: int) -> tuple[Shape, ...]:
    """Returns the shapes with sides in steps of `multiple` and about `image_size`² pixels.

    For each longer side the other one is that multiple which brings the area nearest to the
    square's, as a ratio; it must be within √2 of it. Each shape comes upright and lying.

    Args:
        image_size: Side of the square shape, in pixels; a multiple of `multiple`.
        max_aspect: Longest shape allowed, as longer side / shorter side, at least 1.
        multiple: What the network needs the sides to be a multiple of.

    Returns:
        (height, width) pairs in rising order, the square among them.

    Raises:
        ValueError: An argument is out of range, or there is no shape but the square.
    """
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it must be at least 1 pixel")
    if image_size < 1 or image_size % multiple:
        raise ValueError(
            f"image_size is {image_size}, which is no multiple of {multiple}; use "
            f"{max(multiple, image_size // multiple * multiple)}, or another multiple"
        )
    if not 1.0 <= max_aspect < float("inf"):
        raise ValueError(f"max_aspect is {max_aspect}; it must be at least 1 (squares only)")
    area = image_size**2
    shapes = set()
    for long_side in range(image_size, int(max_aspect * image_size) + 1, multiple):
        below = area // long_side // multiple * multiple
        above = below + multiple
        # Between the two, their geometric mean is as near to both.
        short_side = below if area**2 < below * above * long_side**2 else above
        # Far from the square's area it would be another task for the noise schedule.
        near = area**2 <= 2 * (short_side * long_side) ** 2 <= 4 * area**2
        if near and long_side <= max_aspect * short_side:
            shapes |= {(short_side, long_side), (long_side, short_side)}
    if max_aspect > 1.0 and len(shapes) == 1:
        raise ValueError(
            f"no shape but the square has sides that are multiples of {multiple}, about "
            f"{image_size}² pixels and at most {max_aspect:g}:1; use a smaller multiple or a "
            "larger max_aspect"
        )
    return tuple(sorted(shapes))


def nearest_bucket(widths: NDArray[Any], heights: NDArray[Any], shapes: Sequence[Shape]) -> Ints:
    """Returns the place among `shapes` of the one nearest in log aspect ratio to each image.

    Where two are as near, the squarer one is taken; where a size is not known (0), the squarest.

    Args:
        widths: Widths of the images, shape (n,), in any unit.
        heights: Heights likewise.
        shapes: (height, width) of each bucket.
    """
    if not shapes:
        raise ValueError("shapes is empty: there must be at least one bucket")
    known = (widths > 0) & (heights > 0)
    aspects = np.log(np.where(known, widths, 1) / np.where(known, heights, 1))
    sides = np.array(shapes, dtype=np.float64)
    centres = np.log(sides[:, 1] / sides[:, 0])
    order = np.lexsort((np.abs(centres), centres))
    borders = (centres[order][1:] + centres[order][:-1]) / 2
    # Rounded, so that an image at the same distance from two is one whatever the last bit says.
    borders, aspects = np.round(borders, 9), np.round(aspects, 9)
    nearest = np.where(
        aspects > 0,
        np.searchsorted(borders, aspects, side="left"),
        np.searchsorted(borders, aspects, side="right"),
    )
    return np.where(known, order[nearest], np.argmin(np.abs(centres)))
