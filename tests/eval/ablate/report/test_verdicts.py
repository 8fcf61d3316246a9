import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from eval.ablate.report.comparisons import effects, interactions
from eval.ablate.report.pages import Block, Bullets, Paragraph, Strong
from eval.ablate.report.verdicts import interaction_sentence, reading, tally, verdicts
from eval.ablate.results import Outcome, StudyResults
from tests.eval.ablate.report.made_study import Choices, change, result, score, study

CLEAR = (10.0, 10.1, 10.2)  # both intervals leave out 0
ONE_SIGN = (0.1, 0.4, 1.0)  # only the bootstrap's does
NOTHING = (-1.0, 1.0, 0.3)


def text(blocks: Sequence[Block]) -> str:
    """All words, a line for each paragraph and list item."""
    lines = []
    for block in blocks:
        assert isinstance(block, (Paragraph, Bullets))
        for line in [block.line] if isinstance(block, Paragraph) else block.lines:
            parts = line if isinstance(line, tuple) else (line,)
            lines.append("".join(p.text if isinstance(p, Strong) else p for p in parts))
    return "\n".join(lines)


def differing(
    differences: Mapping[tuple[str, ...], Sequence[float]],
    axes: Mapping[str, tuple[str, ...]],
    figures: Sequence[str] = ("kid_lite0",),
    **changes: Any,
) -> StudyResults:
    """A study with these differences from a wildly varying baseline, seed by seed."""

    def scores(choices: Choices, seed: int) -> dict[str, float]:
        extra = differences.get(tuple(choices.values()), (0.0,) * 9)[seed]
        place = choices.get("resolution", "")
        return dict.fromkeys(figures, 100.0 * math.sin(1 + seed + len(place)) + extra)

    return study(axes, scores, **changes)


SCHEDULES = {"schedule": ("cosine", "a", "b", "c")}


def test_a_sentence_says_what_can_and_what_cannot_be_concluded() -> None:
    results = differing({("a",): [-d for d in CLEAR], ("b",): CLEAR, ("c",): NOTHING}, SCHEDULES)
    lines = text(verdicts(results)).splitlines()
    assert lines[0] == (
        "schedule: by kid_lite0 (lower is better), a is better than cosine; b is worse than cosine;"
        " no conclusion about c (an interval spans 0)."
    )
    # 10.1 ± 4.302653 · 0.1/√3, and the range of three
    assert lines[1:] == [
        "a: 10.1 better (t [9.85, 10.3], bootstrap [10, 10.2], 3 seeds).",
        "b: 10.1 worse (t [9.85, 10.3], bootstrap [10, 10.2], 3 seeds).",
    ]


def test_higher_is_better_turns_the_verdict() -> None:
    results = differing({("a",): CLEAR}, {"schedule": ("cosine", "a")}, ["recall_lite0"])
    assert "by recall_lite0 (higher is better), a is better than cosine." in text(verdicts(results))


def test_an_unknown_figure_has_no_better() -> None:
    results = differing({("a",): CLEAR}, {"schedule": ("cosine", "a")}, ["colour"])
    words = text(verdicts(results))
    assert "by colour (direction not known), a is higher than cosine." in words
    assert "better" not in words


def test_three_differences_of_one_sign_conclude_nothing() -> None:
    results = differing({("a",): ONE_SIGN}, {"schedule": ("cosine", "a")})
    assert "no conclusion about a (an interval spans 0)" in text(verdicts(results))
    (effect,) = effects(results, "kid_lite0", "schedule")
    assert effect.pairs is not None
    assert effect.pairs.bootstrap is not None
    assert effect.pairs.bootstrap.low > 0
    assert reading(effect) == "no conclusion"


AXES = {"schedule": ("cosine", "a"), "resolution": ("64", "128")}


def test_levels_that_differ_are_named() -> None:
    results = differing({("a", "64"): NOTHING, ("a", "128"): [-d for d in CLEAR]}, AXES)
    lines = text(verdicts(results)).splitlines()
    assert lines[0].endswith(
        "a (resolution 128) is better than cosine; no conclusion about a (resolution 64)"
        " (an interval spans 0)."
    )
    assert "10.1 better at resolution 128 (t " in lines[1]
    assert lines[-1].startswith("schedule along resolution: by kid_lite0, the advantage of a grew")


def test_levels_that_agree_are_not() -> None:
    results = differing({("a", r): CLEAR for r in ("64", "128")}, AXES)
    words = text(verdicts(results))
    assert "a is worse than cosine." in words
    assert "no conclusion about a (64 to 128)" in words


def test_levels_with_one_choice_in_common() -> None:
    axes = {"schedule": ("cosine", "a"), "loss": ("eps", "v"), "patch": ("2", "4")}
    differences = {("a", "v", p): CLEAR for p in ("2", "4")}
    differences |= {("a", "eps", p): NOTHING for p in ("2", "4")}
    first = text(verdicts(differing(differences, axes))).splitlines()[0]
    assert "a (loss v) is worse than cosine; no conclusion about a (loss eps)" in first


def test_what_the_other_figures_say() -> None:
    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        scores = dict(one.result.scores)
        value = scores["kid_lite0"].value
        scores["fd_lite0"] = score(3 * value)
        scores["recall_lite0"] = score(value)
        scores["density_lite0"] = score(float(one.seed))
        return replace(one, result=replace(one.result, scores=scores))

    differences = {("a",): CLEAR, ("b",): NOTHING, ("c",): NOTHING}
    results = differing(differences, SCHEDULES, metrics=("kid_lite0",))
    lines = text(verdicts(change(results, edit))).splitlines()
    assert "fd_lite0 (lower is better): the same conclusions." in lines
    assert "recall_lite0 (higher is better): better: a." in lines
    assert not any("density" in line for line in lines)  # all its pairs are equal: never tested


def test_one_seed_concludes_nothing() -> None:
    results = differing({("a", "64"): [5.0], ("a", "128"): [-3.0]}, AXES, seeds=(0,))
    lines = text(verdicts(results)).splitlines()
    assert lines[0].endswith("no conclusion about a (one seed).")
    assert lines[1] == "Differences of the single pairs: a -3 to +5."
    assert not any("along" in line for line in lines)
    assert tally(results).made == 0


def test_why_nothing_is_compared() -> None:
    def edit(one: Outcome) -> Outcome:
        value = one.choices["schedule"]
        if value == "c":
            return replace(one, status="not run", result=None)
        if value == "b":
            return replace(one, result=result({"kid_lite0": 1.0}, floor=0.7))
        return one

    results = differing({}, SCHEDULES, same={("a",): ("cosine",)})
    lines = text(verdicts(change(results, edit))).splitlines()
    assert lines == [
        "schedule: by kid_lite0 (lower is better), nothing can be compared with cosine.",
        "By construction the same run as the baseline: a.",
        "Measured against another reference, so the figures are not compared: b.",
        "No finished pair of runs yet: c.",
    ]


def test_equal_differences_conclude_nothing() -> None:
    results = differing({}, {"schedule": ("cosine", "a")})
    words = text(verdicts(results))
    assert "All pairs of runs differ by the same amount, which shows no spread: a." in words


@pytest.mark.parametrize(
    ("status", "words"),
    [("failed", "No cell has finished"), ("not run", "No cell has finished")],
)
def test_nothing_finished(status: Any, words: str) -> None:
    results = differing({}, SCHEDULES)
    results = change(results, lambda one: replace(one, status=status, result=None))
    assert words in text(verdicts(results))


def test_a_study_without_figures_or_without_a_choice() -> None:
    no_figures = change(differing({}, SCHEDULES), lambda one: replace(one, result=result({})))
    assert text(verdicts(no_figures)) == "No finished cell has a figure: nothing can be compared."
    for axes in ({}, {"schedule": ("cosine",)}):
        assert "nothing to compare" in text(verdicts(differing({}, axes)))


def test_bare_numbers_are_said_with_their_axis() -> None:
    results = differing({("4",): CLEAR}, {"patch": ("2", "4")})
    assert "patch 4 is worse than patch 2." in text(verdicts(results))


def test_interactions_in_words() -> None:
    results = differing({("a", "64"): [-d for d in CLEAR], ("a", "128"): [-5.0, -5.2, -5.3]}, AXES)
    (one,) = interactions(results, "kid_lite0")
    # changes -5, -4.9, -4.9: -4.9333 ± 4.302653 · 0.057735/√3
    assert interaction_sentence(one) == (
        "From resolution 64 to 128, the advantage of a over cosine in kid_lite0 shrank by 4.93,"
        " from 10.1 to 5.17 (change: t [-5.08, -4.79], bootstrap [-5, -4.9], 3 seeds)."
    )
    (one,) = interactions(differing({("a", "128"): ONE_SIGN}, AXES), "kid_lite0")
    assert interaction_sentence(one).endswith("3 seeds): no conclusion.")
    (one,) = interactions(differing({}, AXES, seeds=(0,)), "kid_lite0")
    assert interaction_sentence(one).endswith("(change: 1 seed): too little to conclude anything.")


def test_all_comparisons_are_counted() -> None:
    differences = {("a", "64"): CLEAR, ("a", "128"): NOTHING}
    results = differing(differences, AXES, ["kid_lite0", "recall_lite0"])
    counted = tally(results)
    # For each figure: a at 64 and at 128, one interaction, 128 against 64 for cosine and for a.
    assert counted.made == 2 * 5
    assert counted.conclusive == 2 * 2  # a at 64, and that this changes
    assert "10 comparisons" in counted.sentence()
    assert "up to 0.5 on average" in counted.sentence()


def test_levels_that_have_not_run_are_named_once() -> None:
    axes = {"schedule": ("cosine", "a", "b"), "resolution": ("64", "128", "256")}
    results = change(
        differing({}, axes),
        lambda one: (
            replace(one, status="not run", result=None)
            if one.choices["resolution"] == "256"
            or one.choices == {"schedule": "a", "resolution": "128"}
            else one
        ),
    )
    words = text(verdicts(results))
    assert "yet: everything at resolution 256 and a (resolution 128).\n" in words
    assert "same amount, which shows no spread: a and b.\n" in words
    waiting = change(
        differing({}, axes),
        lambda one: (
            one
            if one.choices["resolution"] == "64"
            else replace(one, status="not run", result=None)
        ),
    )
    by_axis = text(verdicts(waiting)).split("\nresolution: ")
    assert "yet: everything at resolution 128 and everything at resolution 256." in by_axis[0]
    assert "yet: everything." in by_axis[1]
