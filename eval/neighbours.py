"""Nearest rows of a bank that is too large to hold: exact, whatever the batches and their order."""

import numpy as np
import torch
from torch import Tensor

_QUERIES = 1024  # at a time
_CHUNK_FLOATS = 2**22  # distances or differences at a time: 32 MiB
# Bound on the rounding of a squared distance that was taken from inner products, relative to the
# squared norms: a wide multiple of float64's rounding, which grows with the number of features.
_ROUNDING = 1e-12


class Nearest:
    """The k nearest rows to each query, of banks given piece by piece.

    Candidates are found by inner products. Those that could be among the nearest for all that
    rounding may do are measured again feature by feature, which gives the same number in any batch
    and zero for copies. Equal distances are ordered by the rows' ids.

    Args:
        queries: shape (m, d); taken as they are, compared in float64.
        k: neighbours of each query, at least 1.

    Raises:
        ValueError: queries of another shape or not finite, or k below 1.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        self._queries = _checked(queries, None, "queries")
        self.k = k
        self._squares = torch.zeros(len(queries), 0, dtype=torch.float64)
        self._ids = torch.zeros(len(queries), 0, dtype=torch.int64)
        self._centre: Tensor | None = None

    def update(self, features: Tensor, ids: Tensor) -> None:
        """Add rows to the bank.

        Args:
            features: shape (n, d).
            ids: what to call them, int64, shape (n,); each row its own.

        Raises:
            ValueError: shapes that do not fit, or features that are not finite.
        """
        bank = _checked(features, self._queries.shape[1], "features")
        if ids.shape != (len(bank),) or ids.dtype != torch.int64:
            raise ValueError(
                f"ids must be int64 of shape ({len(bank)},), not {ids.dtype} of shape "
                f"{tuple(ids.shape)}"
            )
        ids = ids.cpu()
        rows = max(1, _CHUNK_FLOATS // max(1, min(_QUERIES, len(self._queries))))
        for start in range(0, len(bank), rows):
            self._add(bank[start : start + rows], ids[start : start + rows])

    def result(self) -> tuple[Tensor, Tensor]:
        """Distances, float64 and ascending, and ids, int64; both of shape (m, k).

        Raises:
            ValueError: fewer than k rows were given.
        """
        if self._ids.shape[1] < self.k:
            raise ValueError(
                f"{self.k} nearest rows of {self._ids.shape[1]}: give more rows, or ask for fewer"
            )
        return self._squares.sqrt(), self._ids.clone()

    def _add(self, bank: Tensor, ids: Tensor) -> None:
        if self._centre is None:
            self._centre = bank.mean(0)  # any point near the rows serves: it only saves digits
        near = bank - self._centre
        merged = [
            self._merge(slice(start, start + _QUERIES), bank, near, ids)
            for start in range(0, max(1, len(self._queries)), _QUERIES)
        ]
        self._squares = torch.cat([squares for squares, _ in merged])
        self._ids = torch.cat([found for _, found in merged])

    def _merge(self, part: slice, bank: Tensor, near: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest of some queries after adding the rows: squared distances and ids."""
        queries, squares, found = self._queries[part], self._squares[part], self._ids[part]
        rows, columns = self._candidates(queries, squares, near)
        measured = _measure(queries, bank, rows, columns)
        keys = torch.cat([torch.arange(len(queries)).repeat_interleave(squares.shape[1]), rows])
        values = torch.cat([squares.flatten(), measured])
        names = torch.cat([found.flatten(), ids[columns]])
        order = torch.from_numpy(np.lexsort((names, values, keys)))  # by query, distance, id
        keys, values, names = keys[order], values[order], names[order]
        width = min(self.k, squares.shape[1] + len(bank))
        place = torch.searchsorted(keys, torch.arange(len(queries)))[:, None] + torch.arange(width)
        return values[place], names[place]

    def _candidates(self, queries: Tensor, squares: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (query, row) that may belong to the k nearest, as two index tensors."""
        assert self._centre is not None
        centred = queries - self._centre
        norms = centred.square().sum(1)[:, None] + near.square().sum(1)
        rough = norms - 2 * centred @ near.T
        slack = _ROUNDING * norms
        # Every pair's distance lies within rough ± slack; the k-th smallest upper end is a bound.
        upper = torch.cat([squares, rough + slack], 1)
        width = min(self.k, upper.shape[1])
        bound = upper.kthvalue(width, 1, keepdim=True).values
        rows, columns = (rough - slack <= bound).nonzero(as_tuple=True)
        return rows, columns


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of a bank to each query.

    Args:
        queries: shape (m, d).
        bank: shape (n, d), n at least k.
        k: at least 1.

    Returns:
        Distances, float64 and ascending, and rows of the bank, int64; both of shape (m, k). Equal
        distances are ordered by row.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or too small a bank.
    """
    search = Nearest(queries, k)
    search.update(bank, torch.arange(len(bank)))
    return search.result()


def _measure(queries: Tensor, bank: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances of pairs, feature by feature, shape (pairs,)."""
    size = max(1, _CHUNK_FLOATS // queries.shape[1])
    pairs = zip(rows.split(size), columns.split(size), strict=True)
    return torch.cat([(queries[r] - bank[c]).square().sum(1) for r, c in pairs])


def _checked(features: Tensor, dim: int | None, what: str) -> Tensor:
    if features.ndim != 2 or (dim is not None and features.shape[1] != dim):
        raise ValueError(f"{what} must have shape (n, {dim or 'd'}), not {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{what} must be finite: check the extractor")
    return features.detach().to("cpu", torch.float64)
