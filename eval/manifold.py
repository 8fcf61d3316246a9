"""Precision and recall, density and coverage: sets compared by balls around their features.

Around each row of a set lies a ball that reaches to its k-th nearest neighbour within the set; the
balls together estimate the set's manifold.

    precision: share of samples inside any real ball            (Kynkäänniemi et al. 2019, k = 3)
    recall:    share of real images inside any sample's ball
    density:   real balls around a sample, mean, divided by k   (Naeem et al. 2020, k = 5)
    coverage:  share of real balls that hold any sample

Balls are closed, up to a relative 1e-9 of the squared radius. All four depend on the number of
images: compare figures of equal numbers only.
"""

from collections.abc import Collection

import torch
from torch import Tensor

PRECISION_RECALL_K = 3
DENSITY_COVERAGE_K = 5
NAMES = ("precision", "recall", "density", "coverage")
_CHUNK_FLOATS = 2**22  # 32 MiB of distances at a time
_ROUNDING = 1e-12  # squared distances below this, relative to the squared norms, are zero
_CLOSED = 1 + 1e-9


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances; float64 (a, d), (b, d) -> (a, b). Copies are at zero exactly."""
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    squares = norms - 2 * x @ y.T
    return squares.where(squares > _ROUNDING * norms, 0.0)


def squared_radii(x: Tensor) -> dict[int, Tensor]:
    """Squared distances from each row to its k-th nearest other row.

    Args:
        x: features, shape (n, d).

    Returns:
        For each k in use that is less than n, a float64 tensor of shape (n,).
    """
    x = _centred(x, x)
    most = min(DENSITY_COVERAGE_K, len(x) - 1)
    nearest = []
    for start, rows in _chunks(x, len(x)):
        squares = squared_distances(rows, x)
        own = torch.arange(len(rows))
        squares[own, start + own] = torch.inf  # by place: another row may be a copy
        nearest.append(squares.topk(most, largest=False).values)
    found = torch.cat(nearest)
    return {k: found[:, k - 1] for k in (PRECISION_RECALL_K, DENSITY_COVERAGE_K) if k <= most}


def manifold_scores(
    names: Collection[str],
    samples: Tensor,
    reference: Tensor,
    sample_radii: dict[int, Tensor],
    reference_radii: dict[int, Tensor],
) -> dict[str, float]:
    """Some of the four scores, in one pass over the distances between the sets.

    Args:
        names: out of `NAMES`.
        samples: shape (m, d).
        reference: shape (n, d).
        sample_radii: `squared_radii` of the samples; used for recall alone.
        reference_radii: those of the reference; used for all but recall.
    """
    assert set(names) <= set(NAMES)
    samples, reference = _centred(samples, reference), _centred(reference, reference)
    inside = balls = 0
    recalled = torch.zeros(len(reference), dtype=torch.bool)
    covered = torch.zeros(len(reference), dtype=torch.bool)
    for start, rows in _chunks(samples, len(reference)):
        squares = squared_distances(rows, reference)
        if "precision" in names:
            hit = squares <= reference_radii[PRECISION_RECALL_K] * _CLOSED
            inside += int(hit.any(1).sum())
        if "recall" in names:
            radii = sample_radii[PRECISION_RECALL_K][start : start + len(rows)]
            recalled |= (squares <= radii[:, None] * _CLOSED).any(0)
        if "density" in names or "coverage" in names:
            hit = squares <= reference_radii[DENSITY_COVERAGE_K] * _CLOSED
            balls += int(hit.sum())
            covered |= hit.any(0)
    found = {
        "precision": inside / len(samples),
        "recall": float(recalled.double().mean()),
        "density": balls / (DENSITY_COVERAGE_K * len(samples)),
        "coverage": float(covered.double().mean()),
    }
    return {name: found[name] for name in names}


def _centred(x: Tensor, by: Tensor) -> Tensor:
    # Distances do not change, but a common offset would cost their digits.
    return x.double() - by.double().mean(0)


def _chunks(x: Tensor, columns: int) -> list[tuple[int, Tensor]]:
    size = max(1, _CHUNK_FLOATS // columns)
    return [(start, x[start : start + size]) for start in range(0, len(x), size)]
