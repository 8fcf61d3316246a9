"""Oracles: scipy's matrix square root, torchmetrics, and closed forms of known Gaussians."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from eval.frechet import covariance_factor, distance_of_factors, frechet_distance, rows_factor
from tests.eval.feature_sets import normal


def spread(dim: int, seed: int) -> Tensor:
    """A covariance of full rank, with eigenvalues over two orders of magnitude."""
    q = torch.linalg.qr(normal(dim, dim, seed).double()).Q
    return (q * torch.logspace(-1, 1, dim, dtype=torch.float64)) @ q.T


def by_sqrtm(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    root = scipy.linalg.sqrtm(cov1.numpy() @ cov2.numpy())
    traces = float(cov1.trace() + cov2.trace()) - 2 * float(np.real(np.trace(root)))
    return float((mean1 - mean2).square().sum()) + traces


def of_rows(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())


def test_one_dimension_is_by_hand() -> None:
    one = torch.ones(1, dtype=torch.float64)
    found = frechet_distance(3 * one, 4 * one[None], one, 25 * one[None])
    assert found == pytest.approx((3 - 1) ** 2 + (2 - 5) ** 2, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 17, 64])
def test_full_rank_is_scipys_square_root(dim: int) -> None:
    mean1, mean2 = normal(2, dim, 1).double()
    cov1, cov2 = spread(dim, 2), spread(dim, 3)
    found = frechet_distance(mean1, cov1, mean2, cov2)
    assert found == pytest.approx(by_sqrtm(mean1, cov1, mean2, cov2), rel=1e-9)


def test_is_torchmetrics_on_the_same_features() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Same(torch.nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x

    x, y = normal(150, 12, 0), 0.8 * normal(120, 12, 1) + 0.3
    theirs = FrechetInceptionDistance(
        feature=Same(), normalize=False, input_img_size=(12,)
    ).set_dtype(torch.float64)
    theirs.update(x.double(), real=True)
    theirs.update(y.double(), real=False)
    assert of_rows(x, y) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_symmetric_and_invariant_under_rotation_and_offset() -> None:
    x, y = normal(50, 9, 0).double(), 2 * normal(60, 9, 1).double() + 1
    rotation = torch.linalg.qr(normal(9, 9, 2).double()).Q
    found = of_rows(x, y)
    assert of_rows(y, x) == pytest.approx(found, rel=1e-12)
    assert of_rows(x @ rotation + 1e3, y @ rotation + 1e3) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("n", [2, 10, 300])
def test_a_set_is_at_no_distance_from_itself(n: int) -> None:
    x = normal(n, 40, 0)
    scale = float(x.double().T.cov().trace())
    assert 0 <= of_rows(x, x) < 1e-12 * scale


def test_fewer_images_than_features() -> None:
    # In the span of both sets nothing is singular, and distances there are distances here.
    x, y = normal(10, 100, 0).double(), normal(12, 100, 1).double() + 0.2
    basis = torch.linalg.qr(torch.cat([x, y]).T).Q
    assert basis.shape == (100, 22)
    covariances = of_rows(x, y)
    assert covariances == pytest.approx(of_rows(x @ basis, y @ basis), rel=1e-9)
    rows = distance_of_factors(x.mean(0), rows_factor(x), y.mean(0), rows_factor(y))
    assert covariances == pytest.approx(rows, rel=1e-9)
    # tr (C1 C2)^(1/2) as the nuclear norm, by way of C1^(1/2) C2 C1^(1/2) on the span.
    c1, c2 = ((z @ basis).T.cov().numpy() for z in (x, y))
    w, v = np.linalg.eigh(c1)
    root = (v * np.sqrt(w.clip(0))) @ v.T
    overlap = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + c1.trace() + c2.trace() - 2 * overlap
    # The oracle squares: its zero eigenvalues come back as square roots of rounding.
    assert covariances == pytest.approx(expected, rel=1e-6)


def test_orthogonal_supports_have_no_overlap() -> None:
    cov1, cov2 = torch.zeros(2, 4, 4, dtype=torch.float64)
    cov1[0, 0], cov2[1, 1] = 3.0, 5.0
    mean = torch.zeros(4, dtype=torch.float64)
    assert frechet_distance(mean, cov1, mean, cov2) == pytest.approx(8, rel=1e-12)
    assert frechet_distance(mean, 0 * cov1, mean, cov2) == pytest.approx(5, rel=1e-12)
    assert frechet_distance(mean, 0 * cov1, mean, 0 * cov2) == 0


def test_the_factor_is_one() -> None:
    cov = spread(20, 0)
    factor = covariance_factor(cov)
    torch.testing.assert_close(factor @ factor.T, cov, rtol=1e-12, atol=1e-12)
    x = normal(7, 20, 1).double()
    low = covariance_factor(x.T.cov())
    assert low.shape == (20, 6)
    torch.testing.assert_close(low @ low.T, x.T.cov(), rtol=1e-10, atol=1e-12)


# Sampling


def draws(mean: Tensor, cov: Tensor, n: int, seeds: range) -> list[Tensor]:
    root = torch.linalg.cholesky(cov)
    return [mean + normal(n, len(mean), seed).double() @ root.T for seed in seeds]


def test_of_2000_gaussian_features_is_the_closed_form() -> None:
    """Within the sampling error, which repeated draws tell: their spread, and, as the bias of a
    smooth function of moments falls as 1/n, 2 FD(2n) - FD(n) for its bias-free mean."""
    dim, n, repeats = 8, 2000, 40
    mean1, mean2 = 0.3 * normal(2, dim, 5).double()
    cov1, cov2 = spread(dim, 6), spread(dim, 7)
    exact = by_sqrtm(mean1, cov1, mean2, cov2)
    single, unbiased = [], []
    for i in range(repeats):
        x = torch.cat(draws(mean1, cov1, n, range(100 + 2 * i, 102 + 2 * i)))
        y = torch.cat(draws(mean2, cov2, n, range(900 + 2 * i, 902 + 2 * i)))
        halves = [of_rows(x[:n], y[:n]), of_rows(x[n:], y[n:])]
        single.append(halves[0])
        unbiased.append(2 * of_rows(x, y) - sum(halves) / 2)
    sd = np.std(single, ddof=1)
    assert sd < 0.1 * exact  # else the test says nothing
    assert abs(single[0] - exact) < 4 * sd
    error = np.std(unbiased, ddof=1) / np.sqrt(repeats)
    assert error < 0.01 * exact
    assert abs(np.mean(unbiased) - exact) < 4 * error


def test_the_floor_of_equal_gaussians() -> None:
    """For two sets of n from N(0, I), to leading order: the means give 2 d / n, the covariances
    E |D1 - D2|² / 4 = (d² + d) / 2n, as the distance of I + D1 and I + D2 is |D1 - D2|² / 4."""
    dim, n = 12, 2000
    values = [of_rows(normal(n, dim, 2 * i), normal(n, dim, 2 * i + 1)) for i in range(30)]
    expected = 2 * dim / n + (dim**2 + dim) / (2 * n)
    error = np.std(values, ddof=1) / np.sqrt(30)
    assert error < 0.05 * expected
    assert abs(np.mean(values) - expected) < 4 * error + 0.01 * expected


# Refusals


def test_what_is_no_covariance_is_refused() -> None:
    mean = torch.zeros(3)
    with pytest.raises(ValueError, match="not a covariance"):
        frechet_distance(mean, torch.eye(3), mean, torch.diag(torch.tensor([1.0, 1.0, -0.1])))
    with pytest.raises(ValueError, match="not a covariance"):
        frechet_distance(mean, torch.eye(3), mean, -torch.eye(3))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(mean, torch.eye(3), mean, torch.eye(3) * torch.nan)
    with pytest.raises(ValueError, match="shape"):
        frechet_distance(mean, torch.eye(3), torch.zeros(4), torch.eye(4))
