import math
from dataclasses import replace

import numpy as np
import pytest

from eval.ablate.report.schedule_plots import density, schedules
from eval.ablate.results import Outcome
from tests.eval.ablate.report.made_study import change, cosine, study

AXES = {"schedule": ("cosine", "shifted"), "resolution": ("64", "128"), "loss": ("a", "b")}


@pytest.mark.parametrize("shift", [0.0, -1.5])
def test_density_of_the_cosine_schedule(shift: float) -> None:
    """λ = -2 ln tan(πt/2) under uniform t has the density sech(λ/2)/2π."""
    t = np.linspace(0.01, 0.99, 400)
    where, p = density(t, -2 * np.log(np.tan(np.pi * t / 2)) + shift)
    assert p == pytest.approx(1 / np.cosh((where - shift) / 2) / (2 * math.pi), rel=2e-2)


def test_density_where_a_schedule_stands_still() -> None:
    where, p = density(np.linspace(0, 1, 5), np.asarray([4.0, 2.0, 2.0, 3.0, 1.0]))
    assert where.tolist() == [3.0, 2.0]
    assert p.tolist() == [0.125, 0.125]


def shifted(one: Outcome) -> Outcome:
    assert one.result is not None
    far = one.choices["schedule"] == "shifted" and one.choices["resolution"] == "128"
    return replace(one, result=replace(one.result, schedule=cosine(-1.4 if far else 0.0)))


def test_a_row_of_panels_where_the_level_matters() -> None:
    results = change(study(AXES, lambda c, s: {}, seeds=(0,)), shifted)
    (picture,) = schedules(results)
    assert picture.caption == "Whatever the loss."
    for words in ("Schedule at resolution 64", "Density over λ at resolution 128", "shifted"):
        assert words in picture.svg


def test_one_schedule_for_all_cells() -> None:
    (picture,) = schedules(study(AXES, lambda c, s: {}, seeds=(0,)))
    assert picture.caption == "All cells have this schedule."
    assert "resolution" not in picture.svg


def test_schedules_that_are_not_there() -> None:
    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        schedule = ((0.0, 1.0), (1.0, 0.0)) if one.seed else ((), ())
        return replace(one, result=replace(one.result, schedule=schedule))

    assert schedules(change(study(AXES, lambda c, s: {}, seeds=(0, 1)), edit)) == []


def test_ends_that_are_not_finite() -> None:
    t, logsnr = cosine()
    broken = (t, (math.nan, *logsnr[1:-1], math.nan))

    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        return replace(one, result=replace(one.result, schedule=broken))

    (picture,) = schedules(change(study(AXES, lambda c, s: {}, seeds=(0,)), edit))
    assert picture.caption == "All cells have this schedule."


def test_nothing_is_said_of_levels_that_have_not_run() -> None:
    def edit(one: Outcome) -> Outcome:
        if one.choices["resolution"] == "128":
            return replace(one, status="not run", result=None)
        assert one.result is not None
        shift = float(one.choices["schedule"] == "shifted")
        return replace(one, result=replace(one.result, schedule=cosine(shift)))

    (picture,) = schedules(change(study(AXES, lambda c, s: {}, seeds=(0,)), edit))
    assert picture.caption == "Whatever the loss."
