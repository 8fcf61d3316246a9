"""The cells of a study: which there are, what they come to, and which of them coincide."""

from pathlib import Path
from typing import Any

import pytest

from eval.ablate.cells import Cell, expand, select, unique
from eval.ablate.overlays import StudyError
from eval.ablate.spec import DataRecipe
from eval.ablate.study_file import read_study_file
from simple_diffusion.config_files import ConfigError
from simple_diffusion.config_noise import CosineConfig, ShiftedConfig
from tests.eval.ablate.studies import BASE, write_study

CHAINS = {"count": 2, "images": 30, "loops": ["synthetic", "fresh"]}


def cells_of(folder: Path, **changes: Any) -> tuple[Cell, ...]:
    return expand(read_study_file(write_study(folder, **changes)))


def test_every_combination_in_order(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    assert [cell.name for cell in cells] == [
        f"schedule={schedule},objective.prediction={prediction},seed={seed}"
        for schedule in ("cosine", "shifted_8")
        for prediction in ("eps", "x0")
        for seed in (0, 1)
    ]
    assert len(unique(cells)) == 8
    one = cells[5]
    assert one.name == "schedule=shifted_8,objective.prediction=eps,seed=1"
    config = one.spec.config
    assert config.schedule == ShiftedConfig(CosineConfig(), 8)
    assert (config.objective.prediction, config.seed) == ("eps", 1)
    assert (config.train.total_images, config.train.batch_size) == (64, 8)
    assert config.model.channels == (16,)


def test_no_axes_is_one_cell(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, axes=None, seeds=None)
    assert (cell.name, cell.choices) == ("seed=0", {})


def test_overlays_are_applied_in_order(tmp_path: Path) -> None:
    axes = {
        "first": {"a": {"optim": {"lr": 2.0, "weight_decay": 0.2}}},
        "second": {"b": {"optim": {"lr": 3.0}}},
    }
    common = {"optim": {"lr": 1.0, "weight_decay": 0.1, "clip_norm": 0.1}}
    (cell,) = cells_of(tmp_path, axes=axes, common=common, seeds=[4])
    optim = cell.spec.config.optim
    assert (optim.lr, optim.weight_decay, optim.clip_norm) == (3.0, 0.2, 0.1)


def test_cells_that_coincide_have_one_identity(tmp_path: Path) -> None:
    axes = {
        "schedule": {
            "cosine": {"schedule": {"type": "cosine"}},
            "shifted_16": {"schedule": {"type": "shifted", "reference": 16}},
            "between_16": {"schedule": {"type": "interpolated", "low": 16, "high": 16}},
            "shifted_8": {"schedule": {"type": "shifted", "reference": 8}},
            "between_8": {"schedule": {"type": "interpolated", "low": 8, "high": 8}},
            "between": {"schedule": {"type": "interpolated", "low": 8, "high": 16}},
        },
        "objective.multiscale_from": [None, 16, 8],
    }
    cells = cells_of(tmp_path, axes=axes, seeds=[0])
    groups: dict[str, set[tuple[str, ...]]] = {}
    for cell in cells:
        groups.setdefault(cell.id, set()).add(tuple(cell.choices.values()))
    plain, multi = ("null", "16"), ("8",)
    schedules = (("cosine", "shifted_16", "between_16"), ("shifted_8", "between_8"), ("between",))
    expected = [
        {(s, m) for s in same for m in scales} for same in schedules for scales in (plain, multi)
    ]
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, expected))
    # at twice the size a shift to 16 is one
    bigger = {**BASE, "data": {"path": "nowhere", "image_size": 32}}
    assert len(unique(cells_of(tmp_path, axes=axes, base=bigger, seeds=[0]))) > len(groups)


def test_chains(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, generations=CHAINS, seeds=[0, 1])
    assert len(cells) == 4 * 2 * 3 * 2
    by_name = {cell.name: cell for cell in cells}
    head = "schedule=cosine,objective.prediction=eps"

    def at(loop: str, generation: int, seed: int = 0) -> Cell:
        return by_name[f"{head},loop={loop},generation={generation},seed={seed}"]

    assert at("synthetic", 0).spec.data == DataRecipe(None, "synthetic", 0, 30)
    assert at("synthetic", 0).id == at("fresh", 0).id
    for loop in ("synthetic", "fresh"):
        for generation in (1, 2):
            recipe = at(loop, generation).spec.data
            assert recipe is not None
            assert recipe.parent == at(loop, generation - 1).id
            assert (recipe.loop, recipe.generation, recipe.images) == (loop, generation, 30)
    assert at("synthetic", 1).id != at("fresh", 1).id
    assert at("fresh", 2, 1).spec.data.parent == at("fresh", 1, 1).id  # type: ignore[union-attr]
    seen: set[str] = set()
    for identity, cell in unique(cells).items():
        assert cell.spec.parent is None or cell.spec.parent in seen
        seen.add(identity)
    assert len(seen) == 4 * (1 + 2 * 2) * 2


def test_only_some(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    study = read_study_file(path)
    cells = expand(study)

    def names(*only: str) -> list[str]:
        return [cell.name for cell in select(cells, study.choices, only)]

    assert names() == [cell.name for cell in cells]
    assert names("schedule=cosine", "seed=1") == [
        "schedule=cosine,objective.prediction=eps,seed=1",
        "schedule=cosine,objective.prediction=x0,seed=1",
    ]
    assert names("schedule=cosine,shifted_8") == names()
    assert names("schedule=cosine", "schedule=shifted_8") == names()


def test_only_brings_the_parents_along(tmp_path: Path) -> None:
    study = read_study_file(write_study(tmp_path, axes=None, generations=CHAINS, seeds=[0]))
    cells = expand(study)
    chosen = select(cells, study.choices, ["loop=fresh", "generation=2"])
    assert [cell.choices["generation"] for cell in unique(chosen).values()] == ["0", "1", "2"]
    assert not [c for c in chosen if c.choices["loop"] == "synthetic" and c.spec.parent]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("shedule=cosine", "no axis 'shedule'; did you mean schedule?"),
        ("schedule=cosin", "no value 'cosin'; did you mean cosine?"),
        ("schedule", "schedule has no value"),
        ("seed=7", "seed has no value '7'"),
    ],
)
def test_a_misspelt_only(tmp_path: Path, only: str, message: str) -> None:
    study = read_study_file(write_study(tmp_path))
    with pytest.raises(StudyError) as error:
        select(expand(study), study.choices, [only])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": {"objective.predicton": ["eps"]}},
            "axes.objective.predicton: eps: unknown key objective.predicton; "
            "did you mean objective.prediction?",
        ),
        ({"axes": {"predicton": ["eps"]}}, "unknown key predicton; did you mean objective."),
        (
            {"axes": {"a": {"x": {"shedule": {"type": "cosine"}}}}},
            "axes.a: x: unknown key shedule; did you mean schedule?",
        ),
        ({"axes": {"objective.prediction": ["w"]}}, "axes.objective.prediction: w: objective."),
        (
            {"common": {"optim": {"lrr": 1}}},
            "common: unknown key optim.lrr; did you mean optim.lr?",
        ),
        ({"axes": {"optim.lr": [-1]}}, "axes.optim.lr: -1: optim.lr must be positive"),
        ({"base": {"trian": {}}}, "base: unknown key trian; did you mean train?"),
    ],
)
def test_a_mistake_in_an_overlay_names_it(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        cells_of(tmp_path, **changes)
    assert message in str(error.value)
    assert "study.yaml: " in str(error.value)
