"""Sums over a stream in float64: mean and covariance, and what the Inception score needs."""

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor


class Moments:
    """Count, mean and scatter of rows, updated by batches and merged (Chan, Golub, LeVeque 1979).

    Deviations are taken from the batch's own mean before they are squared, so an offset far larger
    than the spread costs no digits.

    Attributes:
        count: rows seen.
        mean: float64, shape (dim,); zeros before the first row.
        scatter: sum of outer products of deviations from the mean, float64, shape (dim, dim).
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add rows, shape (n, dim)."""
        if len(rows):
            rows = rows.double()
            mean = rows.mean(0)
            centred = rows - mean
            self.scatter.addmm_(centred.T, centred)
            self._join(len(rows), mean)

    def merge(self, other: "Moments") -> None:
        """Add the rows that another instance has seen."""
        if other.count:
            self.scatter += other.scatter
            self._join(other.count, other.mean)

    def _join(self, count: int, mean: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """The covariance, divided by n - 1.

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images; there are {self.count}")
        return (self.scatter + self.scatter.T) / (2 * (self.count - 1))

    def to_tensors(self) -> dict[str, Tensor]:
        """The state; `from_tensors` restores it exactly."""
        return {
            "count": torch.tensor(self.count),
            "mean": self.mean.clone(),
            "scatter": self.scatter.clone(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Restore a state whose tensors have the right types and shapes.

        Raises:
            ValueError: no rows have these moments.
        """
        found = cls(len(tensors["mean"]))
        found.count = int(tensors["count"])
        found.mean, found.scatter = tensors["mean"].clone(), tensors["scatter"].clone()
        scatter = found.scatter
        if found.count < 0 or not bool(found.mean.isfinite().all() & scatter.isfinite().all()):
            raise ValueError("not statistics: a negative count, or moments that are not finite")
        if found.count < 2 and bool(scatter.any()):
            raise ValueError("not statistics: a spread of fewer than two images")
        # |s_ij| <= sqrt(s_ii s_jj), with room for rounding, holds for every scatter matrix.
        bound = scatter.diagonal().clamp(min=0).sqrt()
        slack = 1e-9 * float(bound.max()) ** 2
        fits = bool((scatter.abs() <= torch.outer(bound, bound) + slack).all())
        if not fits or not bool(((scatter - scatter.T).abs() <= slack).all()):
            raise ValueError("not statistics: the scatter matrix is none")
        return found


class ClassMoments:
    """Sums of class probabilities p and of p log p, from which the Inception score follows.

    Attributes:
        count: rows seen.
        class_sum: sum of the probabilities, float64, shape (classes,).
        p_log_p: sum of p log p over rows and classes.
    """

    def __init__(self, classes: int) -> None:
        self.count = 0
        self.class_sum = torch.zeros(classes, dtype=torch.float64)
        self.p_log_p = 0.0

    def update(self, probabilities: Tensor, count: int) -> None:
        """Add rows.

        Args:
            probabilities: shape (count, classes).
            count: rows there should be.

        Raises:
            ValueError: another shape, or rows that are not probabilities.
        """
        if probabilities.shape != (count, len(self.class_sum)):
            raise ValueError(
                f"probabilities of shape {tuple(probabilities.shape)}, not "
                f"({count}, {len(self.class_sum)})"
            )
        p = probabilities.to("cpu", torch.float64)
        if not bool((p >= 0).all() & ((p.sum(1) - 1).abs() < 1e-3).all()):
            raise ValueError(
                "class probabilities must be non-negative and sum to one in each row: apply a "
                "softmax to logits first"
            )
        self.class_sum = self.class_sum + p.sum(0)
        self.p_log_p += float(torch.xlogy(p, p).sum())
        self.count += count

    def merge(self, other: "ClassMoments") -> None:
        """Add the rows that another instance has seen."""
        self.class_sum = self.class_sum + other.class_sum
        self.p_log_p += other.p_log_p
        self.count += other.count

    def inception_score(self) -> float:
        """exp(mean over rows of KL(p || mean p)).

        Raises:
            ValueError: no classes, or no rows.
        """
        if not len(self.class_sum):
            raise ValueError(
                "the Inception score needs class probabilities, and this extractor gives none: "
                "choose one that does, such as lite0 or inception"
            )
        if not self.count:
            raise ValueError("the Inception score needs images; there are none")
        marginal = self.class_sum / self.count
        return math.exp(self.p_log_p / self.count - float(torch.xlogy(marginal, marginal).sum()))

    def to_tensors(self) -> dict[str, Tensor]:
        """The state; `from_tensors` restores it exactly."""
        return {
            "class_sum": self.class_sum.clone(),
            "p_log_p": torch.tensor(self.p_log_p, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], count: int) -> Self:
        """Restore a state of `count` rows whose tensors have the right types and shapes.

        Raises:
            ValueError: no rows of probabilities have these sums.
        """
        found = cls(len(tensors["class_sum"]))
        found.class_sum, found.p_log_p = tensors["class_sum"].clone(), float(tensors["p_log_p"])
        classes = len(found.class_sum)
        found.count = count if classes else 0
        room = 1e-3 * found.count
        lowest = -found.count * math.log(max(classes, 1)) - room
        sums = bool((found.class_sum >= 0).all())
        sums = sums and abs(float(found.class_sum.sum()) - found.count) <= room
        if not sums or not lowest <= found.p_log_p <= room:  # false for NaN too
            raise ValueError("not statistics: the sums of class probabilities are none")
        return found
