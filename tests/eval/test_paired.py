import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval.paired import (
    RESAMPLES,
    Interval,
    Paired,
    bootstrap_interval,
    paired,
    student_interval,
    student_quantile,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 99, 1000])
@pytest.mark.parametrize("p", [0.025, 0.5, 0.6, 0.9, 0.975, 0.9995])
def test_student_quantile_is_scipys(p: float, freedom: int) -> None:
    expected = stats.t.ppf(p, freedom)
    assert student_quantile(p, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("p", "freedom"), [(0.0, 3), (1.0, 3), (math.nan, 3), (0.9, 0)])
def test_quantiles_that_do_not_exist(p: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="no Student quantile"):
        student_quantile(p, freedom)


def test_student_interval_by_hand() -> None:
    # mean 2, s = 1, n = 3: 2 ± 4.302653/√3
    interval = student_interval([1.0, 2.0, 3.0])
    assert (interval.low, interval.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.sampled_from([0.5, 0.9, 0.95]))
def test_student_interval_is_scipys(values: list[float], level: float) -> None:
    interval = student_interval(values, level)
    scale = stats.sem(values)
    expected = (
        np.mean(values)
        + np.asarray([-1, 1]) * stats.t.ppf((1 + level) / 2, len(values) - 1) * scale
    )
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), rel=1e-7, abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=3))
@settings(max_examples=30)
def test_bootstrap_of_two_or_three_is_their_range(values: list[float]) -> None:
    """All draws are the smallest with chance 1/27 > 2.5 %: the percentile is that value."""
    interval = bootstrap_interval(values)
    assert (interval.low, interval.high) == pytest.approx((min(values), max(values)))


def test_bootstrap_of_many_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).exponential(size=2000)
    interval = bootstrap_interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(len(values))
    expected = (values.mean() - half, values.mean() + half)
    # The percentiles of RESAMPLES draws stray by about 2.7/√RESAMPLES of their standard deviation.
    tolerance = 4 * 2.7 / math.sqrt(RESAMPLES) * half / 1.96
    assert (interval.low, interval.high) == pytest.approx(expected, abs=tolerance)


def test_bootstrap_matches_scipys_percentiles() -> None:
    values = np.random.default_rng(2).normal(size=9)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    interval = bootstrap_interval(values.tolist())
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_the_bootstrap_is_repeatable() -> None:
    values = [0.3, -0.1, 0.4, 0.9, 0.2]
    first = bootstrap_interval(values)
    bootstrap_interval([1.0, 5.0, 2.0])
    assert bootstrap_interval(values) == first


def false_alarms(pairs: int, trials: int = 2500) -> tuple[float, float, float]:
    """Shares of trials without any difference where bootstrap, Student, both leave out 0."""
    draws = np.random.default_rng(pairs).normal(size=(trials, pairs))
    found = [paired(row.tolist()) for row in draws]
    alone = np.mean([one.bootstrap is not None and one.bootstrap.sign != 0 for one in found])
    student = np.mean([one.student is not None and one.student.sign != 0 for one in found])
    return float(alone), float(student), float(np.mean([one.sign != 0 for one in found]))


def test_false_alarms_with_three_seeds() -> None:
    """The percentile bootstrap alone is wrong in a quarter of the cases; the rule is not."""
    bootstrap, _, both = false_alarms(3)
    assert bootstrap == pytest.approx(0.25, abs=0.035)  # four standard errors
    assert 0.03 <= both <= 0.068


@pytest.mark.parametrize("pairs", [2, 5])
def test_false_alarms_of_the_rule(pairs: int) -> None:
    _, student, both = false_alarms(pairs, 1500)
    assert both <= student
    assert student == pytest.approx(0.05, abs=0.0225)  # four standard errors
    assert both <= 0.0725


def test_the_rule_finds_a_difference_that_is_there() -> None:
    draws = np.random.default_rng(0).normal(loc=8.0, size=(300, 3))
    signs = [paired(row.tolist()).sign for row in draws]
    assert min(signs) >= 0
    assert np.mean(signs) > 0.8


@pytest.mark.parametrize(
    ("student", "bootstrap", "sign"),
    [
        (Interval(1, 2), Interval(1, 2), 1),
        (Interval(-2, -1), Interval(-2, -1), -1),
        (Interval(-0.1, 2), Interval(1, 2), 0),
        (Interval(1, 2), Interval(-0.1, 2), 0),
        (Interval(0, 2), Interval(0, 2), 0),
        (Interval(-2, -1), Interval(1, 2), 0),
        (None, None, 0),
    ],
)
def test_both_intervals_must_leave_out_zero(
    student: Interval | None, bootstrap: Interval | None, sign: int
) -> None:
    assert Paired((1.0,), 1.0, student, bootstrap).sign == sign


def test_three_of_one_sign_are_not_enough() -> None:
    found = paired([0.1, 0.4, 1.0])
    assert found.bootstrap == Interval(pytest.approx(0.1), pytest.approx(1.0))
    assert found.student is not None
    assert found.student.low < 0
    assert found.sign == 0


def test_one_pair_has_no_interval() -> None:
    assert paired([0.5]) == Paired((0.5,), 0.5, None, None)


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.9 - 0.4, 0.8 - 0.3, 0.6 - 0.1], [0.0, 0.0]])
def test_equal_differences_tell_nothing_of_the_spread(values: list[float]) -> None:
    """Figures in steps of 1/n easily agree in all pairs: an interval of width 0 would be a lie."""
    found = paired(values)
    assert (found.student, found.bootstrap, found.sign) == (None, None, 0)
    assert found.mean == pytest.approx(values[0])


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=6))
def test_negating_is_subtracting_the_other_way_round(values: list[float]) -> None:
    found, other = paired(values).negated(), paired([-v for v in values])
    assert found.sign == other.sign
    assert found.mean == pytest.approx(other.mean)
    if found.student and other.student:
        assert found.student.low == pytest.approx(other.student.low)
        assert found.student.high == pytest.approx(other.student.high)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_cannot_be_compared(values: list[float]) -> None:
    with pytest.raises(ValueError, match="paired differences"):
        paired(values)
