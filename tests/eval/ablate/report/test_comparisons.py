import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.ablate.report.comparisons import (
    best_rows,
    direction,
    effects,
    interactions,
    is_scale,
    measured,
    rows_of,
    said,
)
from eval.ablate.results import Outcome
from eval.paired import paired
from tests.eval.ablate.report.made_study import Choices, change, result, score, study

AXES = {"schedule": ("cosine", "shifted"), "resolution": ("64", "128")}


def table(choices: Choices, seed: int) -> dict[str, float]:
    """Scores without any pattern."""
    key = [ord(c) for c in "".join(choices.values())]
    value = np.random.default_rng([seed, *key]).normal()
    return {"kid_lite0": float(value), "recall_lite0": float(value)}


@given(st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_pairs_share_the_seed_and_all_other_choices(order: random.Random) -> None:
    results = study(AXES, table, seeds=(4, 2, 7))
    shuffled = list(results.outcomes)
    order.shuffle(shuffled)
    found = effects(replace(results, outcomes=tuple(shuffled)), "kid_lite0", "schedule")
    assert {(one.value, one.baseline) for one in found} == {("shifted", "cosine")}
    assert {one.level["resolution"] for one in found} == {"64", "128"}
    for one in found:
        expected = {
            seed: table({"schedule": "shifted", **one.level}, seed)["kid_lite0"]
            - table({"schedule": "cosine", **one.level}, seed)["kid_lite0"]
            for seed in (2, 4, 7)
        }
        assert one.pairs is not None
        assert dict(zip(one.seeds, one.pairs.differences, strict=True)) == pytest.approx(expected)
        assert one.pairs == paired([expected[seed] for seed in one.seeds])


def test_order_is_by_value_then_level() -> None:
    axes = {"schedule": ("a", "b", "c"), "resolution": ("64", "128")}
    results = replace(study(axes, table), baseline={"schedule": "b", "resolution": "64"})
    found = effects(results, "kid_lite0", "schedule")
    assert [(one.value, one.level["resolution"]) for one in found] == [
        ("a", "64"),
        ("a", "128"),
        ("c", "64"),
        ("c", "128"),
    ]


def test_a_seed_that_lacks_a_run_or_a_figure_is_left_out() -> None:
    def edit(one: Outcome) -> Outcome | None:
        assert one.result is not None
        if one.choices["schedule"] == "cosine" and one.seed == 0:
            return None
        if one.choices["schedule"] == "cosine" and one.seed == 1:
            return replace(one, status="failed", result=None)
        if one.choices["schedule"] == "shifted" and one.seed == 2:
            return replace(one, result=result({"recall_lite0": 0.5}))
        if one.choices["schedule"] == "shifted" and one.seed == 3:
            return replace(one, result=result({"kid_lite0": math.nan}))
        return one

    results = change(study({"schedule": AXES["schedule"]}, table, seeds=tuple(range(6))), edit)
    (found,) = effects(results, "kid_lite0", "schedule")
    assert found.seeds == (4, 5)


def test_without_a_pair_there_is_no_difference() -> None:
    def edit(one: Outcome) -> Outcome:
        wrong = (one.seed == 0) == (one.choices["schedule"] == "cosine")
        return replace(one, status="not run", result=None) if wrong else one

    results = change(study({"schedule": AXES["schedule"]}, table, seeds=(0, 1)), edit)
    (found,) = effects(results, "kid_lite0", "schedule")
    assert (found.pairs, found.seeds, found.tested, found.verdict) == (None, (), False, 0)


def test_a_study_may_lack_cells() -> None:
    results = change(
        study(AXES, table),
        lambda one: None if one.choices == {"schedule": "cosine", "resolution": "128"} else one,
    )
    assert [one.level for one in effects(results, "kid_lite0", "schedule")] == [
        {"resolution": "64"}
    ]
    assert not interactions(results, "kid_lite0")


def test_cells_that_coincide_are_one_run() -> None:
    results = study(AXES, table, same={("shifted", "64"): ("cosine", "64")})
    first, second = effects(results, "kid_lite0", "schedule")
    assert (first.same, first.tested) == (True, False)
    assert (second.same, second.tested) == (False, True)


def with_floors(one: Outcome) -> Outcome:
    """At 128 pixels the reference is another."""
    assert one.result is not None
    floor = 0.002 if one.choices["resolution"] == "128" else 0.001
    scores = {
        name: replace(s, floor=floor if name == "kid_lite0" else None)
        for name, s in one.result.scores.items()
    }
    return replace(one, result=replace(one.result, scores=scores))


def test_figures_of_different_references_are_not_compared() -> None:
    results = change(study(AXES, table), with_floors)
    for figure in ("kid_lite0", "recall_lite0"):  # the floor of one figure tells for all
        assert not any(one.comparable for one in effects(results, figure, "resolution"))
        assert not any(one.verdict or one.tested for one in effects(results, figure, "resolution"))
        assert all(one.comparable for one in effects(results, figure, "schedule"))


@pytest.mark.parametrize(("figure", "sign"), [("kid_lite0", 1), ("recall_lite0", -1), ("x", -1)])
def test_which_way_is_better(figure: str, sign: int) -> None:
    """The value is 10 below its baseline, with little noise."""

    def scores(choices: Choices, seed: int) -> dict[str, float]:
        return {figure: -10.0 * (choices["schedule"] == "shifted") + 0.1 * seed**2 * len(choices)
                + 0.01 * seed * (choices["schedule"] == "shifted")}  # fmt: skip

    (found,) = effects(study({"schedule": AXES["schedule"]}, scores), figure, "schedule")
    assert found.pairs is not None
    assert found.pairs.mean == pytest.approx(-9.99)
    assert found.verdict == sign


@pytest.mark.parametrize(
    ("figure", "sign"),
    [
        ("kid_lite0", -1),
        ("fd_dinov2", -1),
        ("fid", -1),
        ("cmmd", -1),
        ("mmd_lite0", -1),
        ("is", 1),
        ("is_lite0", 1),
        ("precision_inception", 1),
        ("recall_lite0", 1),
        ("density_lite0", 1),
        ("coverage_my_own_network", 1),
        ("isle", 0),
        ("loss", 0),
    ],
)
def test_direction_of_figures(figure: str, sign: int) -> None:
    assert direction(figure) == sign


def test_interaction_is_the_difference_of_differences() -> None:
    results = study(AXES, table, seeds=(0, 1, 2, 3))
    (one,) = interactions(results, "kid_lite0")
    assert (one.axis, one.start, one.end, one.effect.axis) == (
        "resolution",
        "64",
        "128",
        "schedule",
    )

    def advantage(resolution: str, seed: int) -> float:
        values = (
            table({"schedule": name, "resolution": resolution}, seed)["kid_lite0"]
            for name in ("cosine", "shifted")
        )
        return float(np.subtract(*values))  # lower is better

    before, after = ([advantage(r, seed) for seed in range(4)] for r in ("64", "128"))
    assert one.before == pytest.approx(np.mean(before))
    assert one.after == pytest.approx(np.mean(after))
    assert one.change.differences == pytest.approx(np.subtract(after, before))
    (other,) = interactions(results, "recall_lite0")  # higher is better, the same numbers
    assert other.change.differences == pytest.approx(np.subtract(before, after))


def test_interaction_needs_all_four_runs() -> None:
    def edit(one: Outcome) -> Outcome:
        gone = one.seed == 1 and one.choices == {"schedule": "cosine", "resolution": "128"}
        return replace(one, status="failed", result=None) if gone else one

    results = change(study(AXES, table, seeds=(0, 1, 2)), edit)
    (one,) = interactions(results, "kid_lite0")
    assert one.seeds == (0, 2)
    (first,) = [
        e for e in effects(results, "kid_lite0", "schedule") if e.level["resolution"] == "64"
    ]
    assert first.pairs is not None
    assert one.before == pytest.approx(-np.mean([first.pairs.differences[i] for i in (0, 2)]))


def test_an_effect_changes_along_the_scale() -> None:
    """Whichever axis comes first: patch sizes are the scale, predictions are not."""
    axes = {"patch": ("p4", "p8", "p16"), "prediction": ("eps", "x0")}
    found = interactions(study(axes, table), "kid_lite0")
    assert [(one.effect.value, one.axis, one.end) for one in found] == [
        ("x0", "patch", "p8"),
        ("x0", "patch", "p16"),
    ]


def test_further_axes_rest_at_their_baselines() -> None:
    axes = {**AXES, "loss": ("eps", "v")}
    found = interactions(study(axes, table), "kid_lite0")
    assert len(found) == 3
    levels = [{**one.effect.level, one.effect.axis: one.effect.baseline} for one in found]
    assert levels == [{"schedule": "cosine", "resolution": "64", "loss": "eps"}] * 3


def test_interactions_that_must_be_0_are_none() -> None:
    same = {("shifted", r): ("cosine", r) for r in ("64", "128")}
    assert not interactions(study(AXES, table, same=same), "kid_lite0")


def test_interactions_know_of_different_references() -> None:
    (one,) = interactions(change(study(AXES, table), with_floors), "kid_lite0")
    assert not one.comparable
    (one,) = interactions(study(AXES, table), "kid_lite0")
    assert one.comparable


def test_best_rows_are_of_one_reference() -> None:
    values = {("a", "64"): 3.0, ("b", "64"): 2.0, ("a", "128"): 1.0, ("b", "128"): 0.5}

    def scores(choices: Choices, _: int) -> dict[str, float]:
        value = values[choices["schedule"], choices["resolution"]]
        return {"kid_lite0": value, "recall_lite0": value, "unheard_of": value}

    axes = {"schedule": ("a", "b"), "resolution": ("64", "128")}
    results = study(axes, scores)
    rows = rows_of(results)
    assert best_rows(rows, "kid_lite0") == {3}
    assert best_rows(rows, "recall_lite0") == {0}
    assert best_rows(rows, "unheard_of") == set()
    assert best_rows(rows[:1], "kid_lite0") == set()  # the best of one is none
    rows = rows_of(change(results, with_floors))
    assert best_rows(rows, "kid_lite0") == {2, 3}
    assert best_rows(rows, "recall_lite0") == {0, 1}


def test_ties_are_all_best() -> None:
    rows = rows_of(study({"a": ("x", "y", "z")}, lambda c, _: {"kid_lite0": float(c["a"] == "y")}))
    assert best_rows(rows, "kid_lite0") == {0, 2}


def test_figures_in_the_order_of_the_study() -> None:
    results = study({}, lambda c, s: dict.fromkeys(("fd_lite0", "extra", "kid_lite0"), 1.0))
    results = replace(results, metrics=("kid_lite0", "recall_lite0", "fd_lite0"))
    assert measured(results) == ["kid_lite0", "fd_lite0", "extra"]


def test_floor_and_matched_are_means_over_seeds() -> None:
    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        known = replace(score(1.0), matched=float(one.seed), floor=None)
        return replace(one, result=replace(one.result, scores={"kid_lite0": known}))

    (row,) = rows_of(change(study({}, table, seeds=(1, 2, 6)), edit))
    assert row.beside("kid_lite0", "matched") == 3.0
    assert row.beside("kid_lite0", "floor") is None
    assert row.beside("fd_lite0", "matched") is None
    assert row.floors == {}


def test_choices_in_words() -> None:
    assert said({"schedule": "cosine"}, {"schedule": ("cosine",)}) == "cosine"
    assert said({"resolution": "64", "schedule": "a"}, AXES) == "schedule a, resolution 64"
    assert said({}, {"schedule": ("cosine",)}) == ""


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (("64", "128"), True),
        (("p4", "p16"), True),
        (("0.1", "1.5", "2"), True),
        (("cosine", "shifted_32"), False),
        (("a", "b"), False),
    ],
)
def test_scales(values: tuple[str, ...], scale: bool) -> None:
    assert is_scale(values) == scale


def test_rows_keep_the_order_of_the_study() -> None:
    rows = rows_of(study(AXES, table, folder=Path("x")))
    assert [tuple(row.choices.values()) for row in rows] == [
        ("cosine", "64"),
        ("cosine", "128"),
        ("shifted", "64"),
        ("shifted", "128"),
    ]
    assert [len(row.outcomes) for row in rows] == [3] * 4
