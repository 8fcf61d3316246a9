"""Squared maximum mean discrepancy (MMD²) between two sets, over all pairs, with its error.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y)               (Gretton et al. 2012)

estimated without bias by leaving out the pairs of a row with itself. KID is this with a cubic
polynomial kernel (Bińkowski et al. 2018); the papers' random subsets are not needed, and cost
precision: all pairs are used. CMMD is this with a wide Gaussian kernel in CLIP's features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]  # float64 (a, d), (b, d) -> (a, b)

GAUSSIAN_SIGMA = 10.0
GAUSSIAN_SCALE = 1000.0  # CMMD is given in thousandths
_CHUNK = 2048  # rows and columns of the kernel matrix at a time: 32 MiB


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """(x·y / d + 1)³, KID's kernel; (a, d), (b, d) -> (a, b)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-|x - y|² / 2σ²) - 1 with σ = 10, of features scaled to length one.

    The kernel of CMMD (Jayasumana et al. 2024), whose code normalises its embeddings. Constants
    added to a kernel cancel in MMD²; without the one, no digits are lost to it.
    """
    x, y = (z / z.norm(dim=1, keepdim=True).clamp(min=1e-30) for z in (x, y))
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.expm1(squares.clamp(min=0) / (-2 * GAUSSIAN_SIGMA**2))


@dataclass(frozen=True)
class KernelSums:
    """Sums over a kernel matrix.

    Attributes:
        rows: sum of each row, float64, shape (m,).
        columns: sum of each column, shape (n,).
        squares: sum of the squares of all entries.
    """

    rows: Tensor
    columns: Tensor
    squares: float


@dataclass(frozen=True)
class Discrepancy:
    """An estimate of MMD².

    Attributes:
        value: unbiased, so it may be negative.
        error: standard error of the value; None with fewer than four rows in a set.
    """

    value: float
    error: float | None


def own_sums(x: Tensor, kernel: Kernel) -> KernelSums:
    """Sums over k(x_i, x_j) for all i ≠ j; x of shape (m, d)."""
    rows, squares = torch.zeros(len(x), dtype=torch.float64), 0.0
    for i in range(0, len(x), _CHUNK):
        for j in range(i, len(x), _CHUNK):
            block = kernel(x[i : i + _CHUNK].double(), x[j : j + _CHUNK].double())
            if i == j:
                block.fill_diagonal_(0)
            rows[i : i + _CHUNK] += block.sum(1)
            if i != j:  # the block below the diagonal is this one's transpose
                rows[j : j + _CHUNK] += block.sum(0)
            squares += float(block.square().sum()) * (1 if i == j else 2)
    return KernelSums(rows, rows, squares)


def cross_sums(x: Tensor, y: Tensor, kernel: Kernel) -> KernelSums:
    """Sums over k(x_i, y_j) for all i, j; x of shape (m, d), y of shape (n, d)."""
    rows = torch.zeros(len(x), dtype=torch.float64)
    columns = torch.zeros(len(y), dtype=torch.float64)
    squares = 0.0
    for i in range(0, len(x), _CHUNK):
        for j in range(0, len(y), _CHUNK):
            block = kernel(x[i : i + _CHUNK].double(), y[j : j + _CHUNK].double())
            rows[i : i + _CHUNK] += block.sum(1)
            columns[j : j + _CHUNK] += block.sum(0)
            squares += float(block.square().sum())
    return KernelSums(rows, columns, squares)


def mmd_squared(x: Tensor, y: Tensor, kernel: Kernel) -> Discrepancy:
    """MMD² between rows of shape (m, d) and (n, d), m and n at least 2."""
    return discrepancy(own_sums(x, kernel), own_sums(y, kernel), cross_sums(x, y, kernel))


def discrepancy(xx: KernelSums, yy: KernelSums, xy: KernelSums) -> Discrepancy:
    """The unbiased estimate of MMD², and its standard error, from sums over the three matrices.

    The variance of this U-statistic is, with k(x, x') = mean + a(x) + a(x') + g(x, x') where g has
    mean zero given either argument, alike for y, and k(x, y) = mean + b(x) + c(y) + h(x, y):

        4/m Var(a_x - b) + 4/n Var(a_y - c)
        + 2 E g_x² / (m (m - 1)) + 2 E g_y² / (n (n - 1)) + 4 E h² / (m n)

    (Hoeffding's decomposition). The second line is all there is when both sets have one
    distribution; estimates of the first line alone are wrong there. Both lines are estimated
    without bias. Near equal distributions the first scatters around zero by about as much as the
    second, so the sum is not let below half the second: the error is then right on average, where
    the whole second line as a limit would overstate it by a fifth.
    """
    m, n = len(xy.rows), len(xy.columns)
    own = float(xx.rows.sum()) / (m * (m - 1)) + float(yy.rows.sum()) / (n * (n - 1))
    value = own - 2 * float(xy.rows.sum()) / (m * n)
    if min(m, n) < 4:
        return Discrepancy(value, None)
    g_x, g_y, h = _own_interaction(xx), _own_interaction(yy), _cross_interaction(xy)
    first_x = _main_effect(xx.rows, xy.rows / n, g_x, h / n)
    first_y = _main_effect(yy.rows, xy.columns / m, g_y, h / m)
    first = 4 * first_x / m + 4 * first_y / n
    second = 2 * g_x / (m * (m - 1)) + 2 * g_y / (n * (n - 1)) + 4 * h / (m * n)
    variance = max(first + second, second / 2)
    return Discrepancy(value, math.sqrt(variance))


def _own_interaction(sums: KernelSums) -> float:
    """E g²: the mean square of the doubly centred kernel, by U-centring (Székely, Rizzo 2014)."""
    m, total = len(sums.rows), float(sums.rows.sum())
    squares = sums.squares - 2 * float(sums.rows.square().sum()) / (m - 2)
    return max(0.0, (squares + total**2 / ((m - 1) * (m - 2))) / (m * (m - 3)))


def _cross_interaction(sums: KernelSums) -> float:
    """E h²: the residual variance of a two-way layout with one entry per cell."""
    m, n = len(sums.rows), len(sums.columns)
    squares = sums.squares - float(sums.rows.square().sum()) / n
    squares -= float(sums.columns.square().sum()) / m
    squares += float(sums.rows.sum()) ** 2 / (m * n)
    return max(0.0, squares / ((m - 1) * (n - 1)))


def _main_effect(own: Tensor, cross: Tensor, own_noise: float, cross_noise: float) -> float:
    """Var(a - b): how much the rows' mean kernel values differ, less what their noise explains.

    Unbiased, hence possibly negative.

    Args:
        own: sums of the rows of the set's own matrix, shape (m,).
        cross: means of its rows against the other set, shape (m,).
        own_noise: E g².
        cross_noise: E h² divided by the size of the other set.
    """
    m = len(own)
    # The sum of row i over the others is (m - 2) a_i, noise, and what all rows share.
    effects = own / (m - 2) - cross
    return float(effects.var()) - own_noise / (m - 2) - cross_noise
