"""The file of a study: what it means, and that every mistake is named."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.ablate.overlays import StudyError, read_axis, read_overlay, value_name
from eval.ablate.study_file import read_study_file
from simple_diffusion.config_files import ConfigError
from tests.eval.ablate.studies import BASE, study_tree, write_study


def test_a_study_says_what_it_says(tmp_path: Path) -> None:
    study = read_study_file(write_study(tmp_path, common={"optim.lr": 0.5}))
    assert study.about == "a question"
    assert study.base == BASE
    assert study.common == {"optim": {"lr": 0.5}}
    assert study.choices == {
        "schedule": ("cosine", "shifted_8"),
        "objective.prediction": ("eps", "x0"),
    }
    assert study.axes["objective.prediction"]["x0"] == {"objective": {"prediction": "x0"}}
    assert study.baseline == {"schedule": "cosine", "objective.prediction": "eps"}
    assert study.seeds == (0, 1)
    assert (study.budget.images, study.budget.minutes) == (64, None)
    assert study.measure.num == 8


def test_the_least_study(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {batch_size: 8}\n")
    path = tmp_path / "least.yaml"
    path.write_text("base: base.yaml\nbudget: {minutes: 2}\n")
    study = read_study_file(path)
    assert (study.choices, study.baseline, study.seeds) == ({}, {}, (0,))
    assert study.measure.metrics == ("kid", "fd")
    assert study.base == {"train": {"batch_size": 8}}
    assert set(study.sources.values()) == {str(tmp_path / "base.yaml")}


def test_the_written_study_is_the_same_anywhere(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "generations": {"count": 2, "images": 9, "loops": ["fresh"]},
        "baseline": {"schedule": "shifted_8"},
    }
    study = read_study_file(write_study(tmp_path, **changes))
    elsewhere = tmp_path / "elsewhere" / "study.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(study.text())
    again = read_study_file(elsewhere)
    for name in ("about", "base", "common", "axes", "baseline", "seeds", "budget", "measure"):
        assert getattr(again, name) == getattr(study, name), name
    assert again.generations == study.generations
    assert again.choices["generation"] == ("0", "1", "2")


def test_cells_are_one_axis(tmp_path: Path) -> None:
    study = read_study_file(write_study(tmp_path, axes=None, cells={"a": {"seed_": 1}, "b": None}))
    assert study.axes == {"cell": {"a": {"seed_": 1}, "b": {}}}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "true"),
        (32, "32"),
        (-0.5, "-0.5"),
        ("min_snr", "min_snr"),
        ([64, 128], "64-128"),
        ({"type": "uniform"}, None),
        ([{"a": 1}], None),
    ],
)
def test_value_names(value: object, name: str | None) -> None:
    assert value_name(value) == name


def test_dotted_keys_are_short_for_sections() -> None:
    dotted = {"model.patch_size": 4, "model": {"depth": 2}, "optim.lr": 1.0}
    nested = {"model": {"patch_size": 4, "depth": 2}, "optim": {"lr": 1.0}}
    assert read_overlay(dotted, "here") == nested


def test_numbers_may_name_values() -> None:
    assert list(read_axis("size", {64: {}, "128": {}}, "here")) == ["64", "128"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "unknown key axis; did you mean axes?"),
        ({"base": None}, "base: the study needs a config"),
        ({"base": "none.yaml"}, "none.yaml: no such config file"),
        ({"about": [1]}, "about must be text"),
        ({"budget": None}, "budget has neither"),
        ({"budget": {}}, "budget has neither"),
        ({"budget": {"images": 1, "minutes": 1}}, "budget has images and minutes"),
        ({"budget": {"image": 1}}, "unknown key budget.image; did you mean budget.images?"),
        ({"budget": {"images": 0}}, "budget.images must be at least 1"),
        ({"budget": {"minutes": -1}}, "budget.minutes must be positive"),
        ({"budget": 6400}, "budget is a section"),
        ({"cells": {"a": {}}}, "axes and cells exclude each other"),
        ({"axes": {"a": []}}, "axes.a: give a list of values"),
        ({"axes": {"a": {}}}, "axes.a: give a list of values"),
        ({"axes": {"a": {"x": 3}}}, "axes.a.x: must hold config sections"),
        ({"axes": {"a": {"x/y": {}}}}, "axes.a: 'x/y' is no name"),
        ({"axes": {"a b": [1]}}, "axes: 'a b' is no name"),
        ({"axes": {"a": {False: {}}}}, "axes.a: quote the name"),
        ({"axes": {"seed": [1, 2]}}, "seed is no axis; list them as seeds"),
        ({"axes": {"optim.lr": [1, 1]}}, "axes.optim.lr: 1 stands twice"),
        ({"axes": {"schedule": [{"type": "cosine"}]}}, "has no short name; use names"),
        ({"axes": {"a": {"x": {"seed": 1}}}}, "axes.a.x: seed is set by `seeds`"),
        ({"common": {"run_dir": "x"}}, "common: run_dir is set by"),
        ({"axes": {"train.total_images": [1]}}, "train.total_images is set by `budget`"),
        ({"common": {"train": {"total_images": 1}}}, "common: train.total_images is set by"),
        ({"seeds": []}, "seeds must be different whole numbers"),
        ({"seeds": 3}, "seeds must be different whole numbers"),
        ({"seeds": [1, 1]}, "seeds must be different whole numbers"),
        ({"seeds": [True]}, "seeds must be different whole numbers"),
        ({"seeds": [-1]}, "seeds must lie in"),
        ({"baseline": {"shedule": "cosine"}}, "no axis 'shedule'; did you mean schedule?"),
        ({"baseline": {"schedule": "cosin"}}, "no value 'cosin'; did you mean cosine?"),
        ({"measure": {"metrics": ["kod"]}}, "unknown metric 'kod'; did you mean kid?"),
        ({"measure": {"metrics": []}}, "measure.metrics needs at least one"),
        ({"measure": {"metrics": ["kid", "kid"]}}, "measure.metrics names one twice"),
        ({"measure": {"extractor": "lite"}}, "unknown extractor 'lite'; did you mean lite0?"),
        ({"measure": {"nun": 3}}, "unknown key measure.nun; did you mean measure.num?"),
        ({"measure": {"num": 1}}, "measure.num must be from 2"),
        ({"measure": {"guidance": float("nan")}}, "measure.guidance must be finite"),
        ({"generations": {"count": 101, "images": 1}}, "generations.count must be at most 100"),
        ({"common": {"scores": {"num": 8}}}, "common: scores is set by `measure`"),
        (
            {"common": {"sampling": {"steps": 3}}, "measure": {"steps": 4}},
            "sampling.steps is set by `measure.steps`",
        ),
        ({"generations": {"count": 2}}, "generations needs count and images"),
        ({"generations": {"count": 1, "images": 1, "loops": ["fesh"]}}, "did you mean fresh?"),
        ({"generations": {"count": 1, "images": 1, "loops": []}}, "generations.loops must be"),
        (
            {"generations": {"count": 1, "images": 1}, "axes": {"loop": {"a": {}}}},
            "generations adds loop and generation; rename",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_study(tmp_path, **changes)
    with pytest.raises((StudyError, ConfigError)) as error:
        read_study_file(path)
    said = str(error.value)
    assert message in said
    assert ".yaml: " in said
    assert "\n" not in said


def test_a_value_twice_in_a_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study_tree(axes=None)) + "cells: {a: {}, a: {}}\n")
    with pytest.raises(ConfigError, match="'a' stands twice"):
        read_study_file(path)
