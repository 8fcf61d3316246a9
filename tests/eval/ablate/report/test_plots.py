import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from eval.ablate.report.comparisons import Row, rows_of
from eval.ablate.report.drawing import Picture
from eval.ablate.report.plots import chain, generations, loss_ratio, losses, training_curves
from eval.ablate.results import Outcome
from tests.eval.ablate.report.made_study import LOGSNR, Choices, change, result, study

AXES = {"schedule": ("cosine", "a", "b"), "resolution": ("64", "128")}


def row(*losses_: tuple[int, tuple[float, ...], tuple[float, ...]]) -> Row:
    """A row of runs with (seed, λ, eps-MSE)."""
    outcomes = (
        Outcome({}, seed, Path("x"), "done", result({}, logsnr=logsnr, eps_mse=eps_mse))
        for seed, logsnr, eps_mse in losses_
    )
    return Row({}, tuple(outcomes))


def words(picture: Picture) -> list[str]:
    return [(e.text or "").strip() for e in ElementTree.fromstring(picture.svg).iter("text")]


def test_loss_ratio_is_taken_seed_by_seed() -> None:
    base = row((0, (-1.0, 1.0), (0.1, 0.5)), (1, (-1.0, 1.0), (0.2, 0.4)))
    other = row((1, (-1.0, 1.0), (0.4, 0.4)), (0, (-1.0, 1.0), (0.8, 0.5)))
    found = loss_ratio(other, base)
    assert found is not None
    assert found.x.tolist() == [-1.0, 1.0]
    assert found.low == pytest.approx([2.0, 1.0])
    assert found.high == pytest.approx([8.0, 1.0])
    assert found.mean == pytest.approx([4.0, 1.0])  # geometric


def test_loss_ratio_where_both_have_a_loss() -> None:
    base = row((0, (-1.0, 0.0, 1.0), (0.1, 0.0, 0.5)), (7, (0.0,), (1.0,)))
    other = row((0, (-1.0, 0.0, 2.0), (0.3, 0.4, 0.5)), (8, (0.0,), (1.0,)))
    found = loss_ratio(other, base)
    assert found is not None
    assert (found.x.tolist(), found.mean.tolist()) == ([-1.0], pytest.approx([3.0]))
    assert loss_ratio(row((3, (0.0,), (1.0,))), base) is None


def test_a_chain_is_followed_by_seed() -> None:
    axes = {"loop": ("s", "f"), "bias": ("on", "off"), "generation": ("0", "1", "2")}

    def scores(choices: Choices, seed: int) -> dict[str, float]:
        extra = 100.0 * (choices["loop"] == "f") + 1000.0 * (choices["bias"] == "off")
        return {"kid_lite0": extra + 10.0 * int(choices["generation"]) + seed}

    results = study(axes, scores, seeds=(1, 3))
    (first,) = [
        one
        for one in rows_of(results)
        if one.choices == {"loop": "f", "bias": "off", "generation": "0"}
    ]
    found = chain(results, first, "kid_lite0")
    assert found is not None
    assert found.x.tolist() == [0, 1, 2]
    assert found.mean == pytest.approx(np.asarray([1102.0, 1112.0, 1122.0]))
    assert (found.high - found.low).tolist() == [2, 2, 2]
    assert chain(results, first, "fd_lite0") is None


def test_generations_have_a_plot_for_each_level() -> None:
    axes = {"loop": ("s", "f"), "bias": ("on", "off"), "generation": ("0", "1")}
    results = study(axes, lambda c, s: {"kid_lite0": 1.0, "recall_lite0": 0.5}, seeds=(0,))
    found = generations(results)
    assert [picture.alt for picture in found] == [
        "Figures by generation at bias on",
        "Figures by generation at bias off",
    ]
    assert {"kid_lite0", "recall_lite0", "s", "f"} <= set(words(found[0]))
    assert generations(study(AXES, lambda c, s: {"kid_lite0": 1.0}, seeds=(0,))) == []


def test_the_legend_has_what_is_drawn() -> None:
    def edit(one: Outcome) -> Outcome:
        gone = one.choices["schedule"] == "b" or one.choices["resolution"] == "128"
        return replace(one, status="not run", result=None) if gone else one

    results = change(study(AXES, lambda c, s: {"kid_lite0": 1.0}, seeds=(0,)), edit)
    absolute, ratio = losses(results)
    for picture in (absolute, ratio):
        found = words(picture)
        assert {"cosine", "a", "resolution 64"} <= set(found)
        assert not {"b", "resolution 128"} & set(found)
    assert "eps-MSE / cosine's" in words(ratio)


def test_a_single_configuration_has_no_ratio() -> None:
    results = study({}, lambda c, s: {"kid_lite0": 1.0})
    (picture,) = losses(results)
    assert picture.name == "loss"
    assert "Validation eps-MSE at each noise level" in words(picture)


def test_curves_of_the_figures_that_were_followed() -> None:
    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        known = one.result.scores
        points = ((0, {}), (1000, {"kid_lite0": known["kid_lite0"]}), (2000, known))
        return replace(one, result=replace(one.result, curve=points))

    results = study({}, lambda c, s: {"kid_lite0": 1.0, "fd_lite0": float(s)})
    found = training_curves(change(results, edit))
    assert [picture.alt for picture in found] == [
        "kid_lite0 over training",
        "fd_lite0 over training",
    ]
    assert "2k" in words(found[0])
    assert training_curves(results) == []


def test_losses_that_cannot_be_drawn() -> None:
    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        eps_mse = tuple(float("nan") for _ in LOGSNR)
        return replace(one, result=replace(one.result, eps_mse=eps_mse))

    assert losses(change(study(AXES, lambda c, s: {}, seeds=(0,)), edit)) == []


def test_too_many_panels_are_said_to_be_left_out() -> None:
    axes = {"schedule": ("cosine", "a"), "size": tuple(str(i) for i in range(11))}
    picture, _ = losses(study(axes, lambda c, s: {}, seeds=(0,)))
    assert picture.caption.endswith("2 further panels are left out.")
    assert len(re.findall(r"size \d+", " ".join(words(picture)))) == 9
