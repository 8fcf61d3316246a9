"""The rows with the smallest digests: a sample that no order or division of a set can change."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class Rows:
    """Rows of features and what is known of them.

    Attributes:
        features: float32, shape (m, dim).
        labels: int64, shape (m,); -1 where there is none.
        digests: uint64, shape (m,).
    """

    def __init__(self, features: Tensor, labels: np.ndarray, digests: np.ndarray) -> None:
        self.features, self.labels, self.digests = features, labels, digests

    @classmethod
    def empty(cls, dim: int) -> "Rows":
        """No rows."""
        return cls(torch.zeros(0, dim), np.zeros(0, np.int64), np.zeros(0, np.uint64))

    def rows(self, index: np.ndarray) -> "Rows":
        """Some of them, by int64 indices."""
        return Rows(self.features[torch.from_numpy(index)], self.labels[index], self.digests[index])


def smallest(parts: Sequence[Rows], keep: int) -> Rows:
    """The first `keep` rows by digest, then label, then the features' bytes: a total order.

    Images with one digest are all but surely copies; extractors may still differ in the last bit.
    """
    whole = Rows(
        torch.cat([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.digests for part in parts]),
    )
    order = np.lexsort((whole.labels, whole.digests))
    digests, labels = whole.digests[order], whole.labels[order]
    new = np.ones(len(order), bool)
    new[1:] = (digests[1:] != digests[:-1]) | (labels[1:] != labels[:-1])
    starts = np.append(np.flatnonzero(new), len(order))
    for run in np.flatnonzero(np.diff(starts) > 1):
        ties = slice(starts[run], starts[run + 1])
        order[ties] = sorted(order[ties], key=lambda row: whole.features[row].numpy().tobytes())
    return whole.rows(order[:keep])


def random_order(digests: np.ndarray) -> Tensor:
    """The order of the digests, but with copies dealt to pseudo-random places.

    Args:
        digests: uint64, ascending, shape (m,).

    Returns:
        A permutation of the rows, int64, shape (m,).
    """
    if not len(digests):
        return torch.zeros(0, dtype=torch.long)
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    copy = (np.arange(len(digests)) - first[group]).astype(np.uint64)
    # The finaliser of splitmix64 turns (digest, copy) into a number like another image's digest,
    # in the range that the kept digests fill.
    mixed = digests + copy * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    places = np.where(copy == 0, digests, mixed % np.maximum(digests.max(), np.uint64(1)))
    return torch.from_numpy(np.argsort(places, kind="stable"))


def checked_rows(tensors: Mapping[str, Tensor], rows: int) -> Rows:
    """The rows in tensors `kept`, `kept_labels` and `kept_digests` of the right types and shapes.

    Raises:
        ValueError: they are not so many, not finite or not in order.
    """
    sample = Rows(
        tensors["kept"].clone(),
        tensors["kept_labels"].numpy().copy(),
        tensors["kept_digests"].numpy().copy().view(np.uint64),
    )
    if len(sample.digests) != rows:
        raise ValueError(f"not statistics: {len(sample.digests)} rows kept, not {rows}")
    if not bool(sample.features.isfinite().all()):
        raise ValueError("not statistics: features that are not finite")
    if bool((sample.digests[1:] < sample.digests[:-1]).any()) or bool((sample.labels < -1).any()):
        raise ValueError("not statistics: digests out of order, or labels below -1")
    return sample
