"""Sorting and grouping arrays by small integers."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def sort_labels(labels: Ints, count: int) -> Ints:
    """Returns the stable order that sorts labels from 0 to count - 1."""
    # numpy sorts 16-bit integers by radix, four times as fast.
    return np.argsort(labels.astype(np.uint16) if count <= 2**16 else labels, kind="stable")


def groups(labels: Ints) -> Iterator[tuple[int, Ints | slice]]:
    """Returns each label that occurs, and where; cheap where there is only one."""
    if labels.size and labels.min() == labels.max():
        yield int(labels[0]), slice(None)
        return
    for label in np.unique(labels):
        yield int(label), np.flatnonzero(labels == label)
