"""Oracles: scalar double loops, torchmetrics, the spread of repeated draws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import eval.kernels
from eval.kernels import Kernel, gaussian, mmd_squared, own_sums, polynomial
from tests.eval.feature_sets import normal


def scalar_polynomial(x: list[float], y: list[float]) -> float:
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def scalar_gaussian(x: list[float], y: list[float]) -> float:
    one, two = math.sqrt(sum(a * a for a in x)), math.sqrt(sum(b * b for b in y))
    square = sum((a / one - b / two) ** 2 for a, b in zip(x, y, strict=True))
    return math.exp(-square / 200)


def double_loop(x: Tensor, y: Tensor, kernel) -> float:
    x, y = x.double().tolist(), y.double().tolist()
    m, n = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j)
    yy = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j)
    xy = sum(kernel(a, b) for a in x for b in y)
    return xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)


PAIRS = [(polynomial, scalar_polynomial), (gaussian, scalar_gaussian)]


@pytest.mark.parametrize(("kernel", "scalar"), PAIRS)
@pytest.mark.parametrize("chunk", [2048, 7])
def test_is_the_double_loop(
    kernel: Kernel, scalar, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval.kernels, "_CHUNK", chunk)
    x, y = normal(20, 5, 0), 1.2 * normal(15, 5, 1) + 0.4
    found = mmd_squared(x, y, kernel)
    assert found.value == pytest.approx(double_loop(x, y, scalar), rel=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_is_torchmetrics_kid() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    class Same(torch.nn.Module):
        num_features = 12

        def forward(self, x: Tensor) -> Tensor:
            return x

    x, y = normal(80, 12, 0).double(), 0.8 * normal(80, 12, 1).double() + 0.3
    theirs = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=80)
    theirs.set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    expected = float(theirs.compute()[0])
    assert mmd_squared(x, y, polynomial).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kernel", [polynomial, gaussian])
def test_blocks_give_the_sums_of_the_whole_matrix(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(50, 4, 0)
    matrix = kernel(x.double(), x.double()).fill_diagonal_(0)
    monkeypatch.setattr(eval.kernels, "_CHUNK", 13)
    found = own_sums(x, kernel)
    torch.testing.assert_close(found.rows, matrix.sum(1), rtol=1e-12, atol=1e-12)
    assert found.squares == pytest.approx(float(matrix.square().sum()), rel=1e-12)


def test_the_gaussian_kernel_sees_directions_alone() -> None:
    x, y = normal(30, 6, 0), normal(30, 6, 1) + 0.5
    lengths = normal(30, 1, 2).exp()
    found = mmd_squared(x * lengths, y * 7, gaussian).value
    assert found == pytest.approx(mmd_squared(x, y, gaussian).value, rel=1e-5)
    assert mmd_squared(torch.zeros(4, 6), y, gaussian).value > 0  # no division by zero


def test_needs_four_rows_for_an_error() -> None:
    x, y = normal(3, 4, 0), normal(9, 4, 1)
    found = mmd_squared(x, y, polynomial)
    assert found.error is None
    assert found.value == pytest.approx(double_loop(x, y, scalar_polynomial), rel=1e-12)
    assert mmd_squared(y[:4], y[4:], polynomial).error is not None


# The error is the spread of repeated draws.


def skewed(n: int, dim: int, seed: int) -> Tensor:
    """Features that are never negative, as those after a ReLU."""
    return normal(n, dim, seed).abs() * torch.linspace(0.2, 2, dim)


CASES = {
    "same, equal sizes": (60, 60, 1.0, 0.0),
    "same, unequal sizes": (40, 160, 1.0, 0.0),
    "other spread": (60, 60, 1.5, 0.0),
    "other mean": (30, 120, 1.0, 0.3),
    "both, few": (24, 40, 1.3, 0.5),
}


@pytest.mark.parametrize("kernel", [polynomial, gaussian])
@pytest.mark.parametrize("case", CASES)
def test_unbiased_with_a_calibrated_error(kernel: Kernel, case: str) -> None:
    m, n, scale, shift = CASES[case]
    repeats = 500
    found = [
        mmd_squared(skewed(m, 6, 2 * i), scale * skewed(n, 6, 2 * i + 1) + shift, kernel)
        for i in range(repeats)
    ]
    values = np.array([one.value for one in found])
    errors = np.array([one.error for one in found], dtype=float)
    observed = values.std(ddof=1)
    if case.startswith("same"):
        assert abs(values.mean()) < 4 * observed / np.sqrt(repeats)
        assert values.min() < 0  # unbiased estimates of zero fall on both sides
    # The observed spread is itself known to some 5%; heavy tails add to that.
    assert errors.mean() / observed == pytest.approx(1, abs=0.15)
    # Few and skewed features scatter more in their error than in its mean.
    assert 0.9 < np.sqrt((errors**2).mean()) / observed < 1.3
    assert (errors > 0).all()
