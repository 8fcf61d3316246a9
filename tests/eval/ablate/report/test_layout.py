import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.ablate.report.comparisons import Row
from eval.ablate.report.layout import band, colour_axis, layout, relevant_axes
from tests.eval.ablate.report.made_study import study

AXES = {"patch": ("2", "4"), "prediction": ("eps", "x0"), "loss": ("a", "b")}


def value(row: Row) -> float:
    return next(iter(row.values("kid_lite0").values()))


def test_band_of_curves_at_the_same_points() -> None:
    found = band([([1, 2], [0.0, 4.0]), ([1, 2], [1.0, 6.0]), ([2, 1], [8.0, 5.0])])
    assert found is not None
    assert found.x.tolist() == [1, 2]
    assert found.mean == pytest.approx([2, 6])
    assert found.low.tolist() == [0, 4]
    assert found.high.tolist() == [5, 8]


def test_band_on_the_common_range_of_curves_at_other_points() -> None:
    """Straight lines stay straight whatever their points."""
    found = band([([0, 10], [0.0, 10.0]), ([2, 4, 7], [5.0, 7.0, 10.0])])
    assert found is not None
    assert found.x.tolist() == [2, 4, 7]
    assert found.mean == pytest.approx([3.5, 5.5, 8.5])
    assert band([([0, 1], [0.0, 0.0]), ([2, 3], [0.0, 0.0])]) is None


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4))
def test_logarithmic_band_is_the_geometric_mean(values: list[float]) -> None:
    found = band([([0.0], [v]) for v in values], logarithmic=True)
    assert found is not None
    assert found.mean[0] == pytest.approx(np.prod(values) ** (1 / len(values)))


def test_what_cannot_be_drawn_is_left_out() -> None:
    found = band([([0, 1, 2], [1.0, float("nan"), 3.0]), ([], [])])
    assert found is not None
    assert found.x.tolist() == [0, 2]
    found = band([([0, 1, 2], [1.0, -1.0, 1e300])], logarithmic=True)
    assert found is not None
    assert found.x.tolist() == [0]
    assert band([]) is None
    assert band([([0], [float("inf")])]) is None


def test_colours_tell_names_apart_and_panels_the_rest() -> None:
    plan = layout(study(AXES, lambda c, s: {"kid_lite0": 1.0}))
    assert plan.axis == "prediction"
    assert list(plan.looks) == ["eps", "x0"]
    assert list(plan.panels) == [f"patch {p}, loss {q}" for p in "24" for q in "ab"]
    for rows in plan.panels.values():
        assert {name: row.choices["prediction"] for name, row in rows.items()} == {
            "eps": "eps",
            "x0": "x0",
        }


def test_a_value_has_one_colour_whatever_the_plot() -> None:
    results = study(AXES, lambda c, s: {"kid_lite0": 1.0})
    assert layout(results).looks == layout(results, ["prediction", "loss"]).looks


def test_rows_alike_on_the_axes_shown_are_one() -> None:
    results = study(AXES, lambda c, s: {"kid_lite0": float(c["patch"])})
    plan = layout(results, ["prediction"], lambda row: row.choices["patch"] == "4")
    assert list(plan.panels) == [""]
    assert [value(row) for row in plan.panels[""].values()] == [4.0, 4.0]


def test_a_study_without_axes_has_one_line() -> None:
    plan = layout(study({}, lambda c, s: {"kid_lite0": 1.0}))
    assert plan.axis is None
    assert list(plan.panels[""]) == list(plan.looks) == ["made"]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"patch": ("2", "4"), "loss": ("a", "b")}, "loss"),
        ({"patch": ("2", "4"), "size": ("8", "16")}, "patch"),
        ({"guidance": ("off", "on"), "loop": ("a", "b"), "generation": ("0", "1")}, "loop"),
        ({}, None),
    ],
)
def test_axis_of_the_colours(axes: dict[str, tuple[str, ...]], expected: str | None) -> None:
    assert colour_axis(axes) == expected


def test_axes_that_something_depends_on() -> None:
    results = study(AXES, lambda c, s: {"kid_lite0": len(c["loss"]) + float(c["patch"])})
    assert relevant_axes(results, value) == ["patch"]
    assert relevant_axes(results, lambda row: tuple(row.choices.values())) == list(AXES)
    assert relevant_axes(results, lambda row: None) == []
    both = relevant_axes(results, lambda row: row.choices["patch"] + row.choices["loss"])
    assert both == ["patch", "loss"]
