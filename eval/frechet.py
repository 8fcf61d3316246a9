"""The Fréchet distance between two Gaussians, from their moments.

    d² = |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))          (Dowson and Landau 1982)

For any factors with C = F Fᵀ the last trace is the sum of the singular values of F1ᵀ F2. So no
square root of a non-symmetric matrix is needed: nothing becomes complex, singular covariances
(fewer images than features) are no special case, and of n < d images the factor is the centred
features.
In Inception features this is the FID (Heusel et al. 2017).
"""

import torch
from torch import Tensor

_NOT_NEGATIVE = 1e-6  # a covariance's eigenvalues, relative to the largest


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """d² between N(mean1, cov1) and N(mean2, cov2), by symmetric eigendecompositions.

    Args:
        mean1, mean2: shape (d,).
        cov1, cov2: symmetric, positive semidefinite, of any rank; shape (d, d).

    Returns:
        A real number, not below zero.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a matrix that is not a
            covariance.
    """
    for mean, cov in ((mean1, cov1), (mean2, cov2)):
        if mean.shape != mean1.shape or mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ValueError(
                "the Fréchet distance needs means of one shape (d,) and covariances (d, d), not "
                f"{tuple(mean1.shape)} with {tuple(mean.shape)} and {tuple(cov.shape)}"
            )
        if not bool(mean.isfinite().all() & cov.isfinite().all()):
            raise ValueError("the Fréchet distance needs finite means and covariances")
    return distance_of_factors(mean1, covariance_factor(cov1), mean2, covariance_factor(cov2))


def covariance_factor(cov: Tensor) -> Tensor:
    """F of shape (d, rank) with F Fᵀ = cov, in float64.

    Raises:
        ValueError: an eigenvalue is negative by more than rounding.
    """
    values, vectors = torch.linalg.eigh(cov.double())
    largest = float(values[-1].clamp(min=0))
    if float(values[0]) < -_NOT_NEGATIVE * largest or float(values[-1]) < 0:
        raise ValueError(
            f"not a covariance: its eigenvalues lie between {float(values[0]):.3g} and "
            f"{float(values[-1]):.3g}"
        )
    # What is no larger than the rounding of the largest would be noise of half its digits after
    # the square root.
    held = values > largest * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, held] * values[held].sqrt()


def rows_factor(rows: Tensor) -> Tensor:
    """F of shape (d, n) with F Fᵀ the covariance (divided by n - 1) of n >= 2 rows (n, d)."""
    rows = rows.double()
    return (rows - rows.mean(0)).T / (len(rows) - 1) ** 0.5


def distance_of_factors(mean1: Tensor, factor1: Tensor, mean2: Tensor, factor2: Tensor) -> float:
    """d² between N(mean1, factor1 factor1ᵀ) and N(mean2, factor2 factor2ᵀ).

    Args:
        mean1, mean2: shape (d,).
        factor1, factor2: shape (d, any); zero columns stand for a covariance of zero.
    """
    overlap = torch.linalg.svdvals(factor1.T @ factor2).sum()
    spread = factor1.square().sum() + factor2.square().sum() - 2 * overlap
    distance = (mean1.double() - mean2.double()).square().sum() + spread
    return max(0.0, float(distance))  # a squared distance: below zero is rounding
