"""Whole studies: loaded, planned on paper, and their results gathered."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.ablate.cells import select
from eval.ablate.collect import collect
from eval.ablate.driver import cell_folder
from eval.ablate.folder import Failure, write_failure
from eval.ablate.forecast import duration, forecast, quantity
from eval.ablate.ready import check_ready
from eval.ablate.study import Study, StudyError, load_study
from tests.eval.ablate.stub_job import RESULT
from tests.eval.ablate.studies import BASE, write_study

SHIPPED = sorted((Path(__file__).resolve().parents[3] / "configs" / "ablations").glob("*.yaml"))
SCHEDULES = {
    "cosine": {"schedule": {"type": "cosine"}},
    "shifted_16": {"schedule": {"type": "shifted", "reference": 16}},
    "shifted_8": {"schedule": {"type": "shifted", "reference": 8}},
}


def finish(study: Study, out: Path, number: int, **changes: Any) -> None:
    folder = cell_folder(out, study.cells[number].id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({**RESULT, **changes}))


def test_the_shipped_studies_are_there() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {
        "noise_schedule",
        "loss_weighting",
        "multiscale",
        "prediction",
        "self_consuming",
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_can_be_built(path: Path) -> None:
    study = load_study(path)
    assert study.file.about
    assert len(study.cells) > 2
    assert set(study.costs) == {cell.id for cell in study.cells}


def test_coinciding_cells_of_the_shipped_study() -> None:
    """At 64px a shift to 64 is no shift."""
    (path,) = [path for path in SHIPPED if path.stem == "noise_schedule"]
    by_name = {cell.name: cell.id for cell in load_study(path).cells}
    head = "resolution=64,schedule="
    assert by_name[f"{head}shifted_64,seed=0"] == by_name[f"{head}cosine,seed=0"]
    assert len(set(by_name.values())) == len(by_name) - 3


def test_a_cell_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    path = write_study(tmp_path, axes={"model.patch_size": [4, 5]})
    with pytest.raises(StudyError, match=r"cell model\.patch_size=5,seed=0 cannot be built: ") as e:
        load_study(path)
    assert str(path) in str(e.value)


def test_figures_carry_their_extractor(tmp_path: Path) -> None:
    measure = {"metrics": ["fd", "kid"], "extractor": "inception"}
    assert load_study(write_study(tmp_path, measure=measure)).figures == ("fid", "kid_inception")


def test_the_plan_says_what_coincides_and_what_is_left(tmp_path: Path) -> None:
    study, out = load_study(write_study(tmp_path, axes={"schedule": SCHEDULES})), tmp_path / "out"
    text = forecast(study, study.cells, out)
    assert "study study: a question" in text
    assert "6 cells in 4 runs, 4 of them still to do" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if "schedule=" in line}
    assert lines["schedule=shifted_16"][1:] == ["the", "same", "as", "schedule=cosine"]
    assert lines["schedule=cosine"][1:3] == ["2", "64"]
    assert lines["schedule=cosine"][-1] == "2"
    assert "time: not known" in text

    finish(study, out, 0)
    finish(study, out, 1)
    text = forecast(study, study.cells, out)
    lines = {line.split()[0]: line.split() for line in text.splitlines() if "schedule=" in line}
    assert lines["schedule=cosine"][-1] == "finished"
    assert "6 cells in 4 runs, 2 of them still to do" in text
    chosen = select(study.cells, study.file.choices, ["schedule=cosine"])
    assert forecast(study, chosen, out).endswith("2 cells in 2 runs, 0 of them still to do")


def test_flops_and_time_are_sums_by_hand(tmp_path: Path) -> None:
    study, out = load_study(write_study(tmp_path, axes={"schedule": SCHEDULES})), tmp_path / "out"
    (cost,) = set(study.costs.values())
    assert cost.train_flops is not None
    todo = f"to do: {quantity(4 * cost.train_flops, 'FLOP')} of training, "
    assert todo + f"{quantity(4 * cost.sample_flops, 'FLOP')} of sampling" in (
        forecast(study, study.cells, out)
    )
    # at 16 images/s, 64 images are 4 s, and sampling goes at the same FLOP/s
    seconds = 4 * (4.0 + cost.sample_flops / (16.0 * cost.step_flops))
    text = forecast(study, study.cells, out, rate=16.0, jobs=2)
    assert f"time: about {duration(seconds / 2)} with 2 at once, by the rate of 16" in text
    # a finished cell: 4 s of training, 1 s of evaluation
    finish(study, out, 0, train_flops=cost.train_flops)
    text = forecast(study, study.cells, out)
    assert f"time: about {duration(3 * 5.0)} with 1 at once, by 1 finished cells" in text
    with pytest.raises(ValueError, match="--rate 0: images/s, more than 0"):
        forecast(study, study.cells, out, rate=0)


def test_a_budget_of_minutes_is_a_time(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, axes=None, seeds=[0, 1, 2], budget={"minutes": 2}))
    out = tmp_path / "out"
    assert "(the base config)" in forecast(study, study.cells, out)
    assert "2 min" in forecast(study, study.cells, out)
    finish(study, out, 0)
    assert "time: about 4 min with 1 at once" in forecast(study, study.cells, out)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45 s"), (89, "89 s"), (720, "12 min"), (12_600, "3.5 h"), (181_440, "2.1 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.46e6, "3.46 M"), (999.4, "999"), (999.6, "1 k"), (0.0, "0"), (2e24, "2e+03 Z")],
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value) == text
    assert quantity(value, "FLOP").startswith(text)


def test_results_are_gathered(tmp_path: Path) -> None:
    chain = {"count": 2, "images": 9, "loops": ["fresh"]}
    study = load_study(write_study(tmp_path, axes=None, seeds=[0, 1], generations=chain))
    out = tmp_path / "out"
    finish(study, out, 0)  # generation 0, seed 0
    failed = cell_folder(out, study.cells[2].id)  # generation 1, seed 0
    failed.mkdir()
    write_failure(failed, Failure("ValueError: the reason", 1))
    damaged = cell_folder(out, study.cells[1].id)
    damaged.mkdir()
    (damaged / "result.json").write_text("{")
    results = collect(study, out)
    assert (results.name, results.about, results.seeds) == ("study", "a question", (0, 1))
    assert results.axes == {"loop": ("fresh",), "generation": ("0", "1", "2")}
    assert results.baseline == {"loop": "fresh", "generation": "0"}
    assert results.metrics == ("kid_lite0", "fd_lite0")
    done, broken, crashed, after_broken, after_crash, last = results.outcomes
    assert done.status == "done"
    assert done.result is not None
    assert done.result.scores["kid_lite0"].value == 0.5
    assert done.name == "loop=fresh,generation=0,seed=0"
    assert (broken.status, str(damaged) in broken.error) == ("failed", True)
    assert (crashed.status, crashed.error) == ("failed", "ValueError: the reason")
    assert (after_broken.status, after_broken.error) == (
        "not run",
        "needs loop=fresh,generation=0,seed=1, which failed",
    )
    assert after_crash.error == "needs loop=fresh,generation=1,seed=0, which failed"
    assert last.error == after_broken.error


def test_missing_data_are_named_before_anything_runs(tmp_path: Path, tiny_shards: Path) -> None:
    there = {**BASE, "data": {"path": str(tiny_shards), "image_size": 16}}
    study = load_study(write_study(tmp_path, base=there))
    check_ready(study.cells)
    axes = {"data.path": [str(tiny_shards)], "data.validation_path": ["no/where"]}
    named = {axis: {"x": {axis: value[0]}} for axis, value in axes.items()}
    study = load_study(write_study(tmp_path, base=there, axes=named))
    with pytest.raises(StudyError, match=r"not there:\n  .*no/where"):
        check_ready(study.cells)
    # the held-out half has no held-out half of its own
    inner = {**there, "data": {"path": str(tiny_shards / "validation"), "image_size": 16}}
    study = load_study(write_study(tmp_path, base=inner))
    with pytest.raises(StudyError, match="no held-out images to score against"):
        check_ready(study.cells)
    given = {"reference": str(tiny_shards)}
    check_ready(load_study(write_study(tmp_path, base=inner, measure=given)).cells)
    study = load_study(write_study(tmp_path, base=there, measure={"weights": "no/file"}))
    with pytest.raises(ValueError, match="no/file"):
        check_ready(study.cells)


def test_the_baseline_is_a_cell(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, baseline={"schedule": "shifted_8"}))
    assert study.baseline.name == "schedule=shifted_8,objective.prediction=eps,seed=0"
    assert study.baseline is not replace(study).cells[0]
