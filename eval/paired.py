"""What a handful of paired differences can tell: two intervals for their mean, and a rule.

Runs that differ in one choice and share everything else, the seed included, are compared pair by
pair. Two intervals are given for the mean difference. The percentile bootstrap (Efron 1979) assumes
nothing of the differences' distribution, but with few pairs it is far too narrow: with three it is
their range, which leaves out 0 whenever all three have one sign, by chance in 1 of 4 cases. The
interval of Student assumes that differences are normal and is right for any number of them. A
conclusion needs both to leave out 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
_SEED = 20_230_126  # of the bootstrap: the same differences always give the same interval
_MAX_PAIRS = 4096
# Differences that agree to this share of their mean are equal: what is left is rounding.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, in the unit of the differences."""

    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval is above or below 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Paired:
    """Differences of pairs and what they say of their mean.

    Attributes:
        differences: one of each pair.
        mean: of the differences.
        student: Student's interval; None with a single pair, and where all differences are equal:
            these tell nothing of the spread.
        bootstrap: the percentile bootstrap's interval; None likewise.
    """

    differences: tuple[float, ...]
    mean: float
    student: Interval | None
    bootstrap: Interval | None

    @property
    def sign(self) -> int:
        """1 or -1 where both intervals leave out 0 on that side; 0: nothing can be concluded."""
        if self.student is None or self.bootstrap is None:
            return 0
        signs = {self.student.sign, self.bootstrap.sign}
        return signs.pop() if len(signs) == 1 else 0

    def negated(self) -> "Paired":
        """The same pairs, subtracted the other way round."""
        student, bootstrap = (
            None if one is None else Interval(-one.high, -one.low)
            for one in (self.student, self.bootstrap)
        )
        return Paired(tuple(-d for d in self.differences), -self.mean, student, bootstrap)


def paired(differences: Sequence[float]) -> Paired:
    """The mean of paired differences, with its intervals.

    Args:
        differences: one of each pair, at least one, all finite.

    Raises:
        ValueError: there is none, or one is not finite.
    """
    values = _checked(differences)
    mean = float(values.mean())
    known = len(values) > 1 and float(np.ptp(values)) > _EQUAL * abs(mean)
    return Paired(
        differences=tuple(values.tolist()),
        mean=mean,
        student=student_interval(values.tolist()) if known else None,
        bootstrap=bootstrap_interval(values.tolist()) if known else None,
    )


def student_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean ± t·s/√n, with s of n - 1 degrees of freedom (Student 1908).

    Raises:
        ValueError: fewer than two values, or one is not finite.
    """
    array = _checked(values, least=2)
    half = student_quantile((1 + level) / 2, len(array) - 1)
    half *= float(array.std(ddof=1)) / math.sqrt(len(array))
    mean = float(array.mean())
    return Interval(mean - half, mean + half)


def bootstrap_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Percentiles of the means of `RESAMPLES` resamples, which are the same at every call.

    Raises:
        ValueError: fewer than two values, or one is not finite.
    """
    array = _checked(values, least=2)
    means = array[_resamples(len(array))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def student_quantile(p: float, freedom: int) -> float:
    """The p-quantile of Student's distribution.

    Args:
        p: in (0, 1).
        freedom: degrees of freedom, a whole number from 1.

    Raises:
        ValueError: p or the degrees of freedom are outside their range.
    """
    if not 0 < p < 1 or freedom < 1:
        raise ValueError(f"no Student quantile for p = {p}, {freedom} degrees of freedom")
    if p < 0.5:
        return -student_quantile(1 - p, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the angle's interval down to rounding
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * p - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < √freedom·tan(angle)), a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else (math.cos(angle) if odd else 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


@lru_cache(maxsize=4)
def _resamples(count: int) -> np.ndarray:
    """Which values each resample draws, shape (RESAMPLES, count)."""
    draws = np.random.default_rng(_SEED).integers(count, size=(RESAMPLES, count), dtype=np.int32)
    draws.setflags(write=False)
    return draws


def _checked(values: Sequence[float], least: int = 1) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not least <= len(array) <= _MAX_PAIRS:
        raise ValueError(f"from {least} to {_MAX_PAIRS} paired differences are needed")
    if not np.isfinite(array).all():
        raise ValueError("paired differences must be finite: leave out the pairs that are not")
    return array
