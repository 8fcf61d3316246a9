"""`cell.yaml` and the identity of cells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.ablate.spec import CELL, ID_LENGTH, Budget, CellSpec, DataRecipe, Measure
from simple_diffusion.config import RunConfig
from simple_diffusion.config_files import ConfigError
from simple_diffusion.config_noise import CosineConfig, ShiftedConfig

SPEC = CellSpec(
    RunConfig(schedule=ShiftedConfig(reference=32)),
    Measure(metrics=("fd", "kid"), num=9, steps=3),
    Budget(images=64),
    DataRecipe("0123456789ab", "fresh", 2, 100),
)


def test_round_trip(tmp_path: Path) -> None:
    SPEC.write(tmp_path)
    read = CellSpec.read(tmp_path)
    assert read.config.run_dir == str(tmp_path / "run")
    assert replace(read, config=replace(read.config, run_dir=SPEC.config.run_dir)) == SPEC
    assert read.id == SPEC.id
    plain = replace(SPEC, data=None, budget=Budget(minutes=2.5), measure=Measure())
    plain.write(tmp_path)
    assert CellSpec.read(tmp_path).id == plain.id
    assert CellSpec.read(tmp_path).data is None


def _changed(**changes: Any) -> CellSpec:
    return replace(SPEC, **changes)


@pytest.mark.parametrize(
    "same",
    [
        _changed(config=replace(SPEC.config, run_dir="elsewhere")),
        _changed(measure=replace(SPEC.measure, metrics=("kid", "fd"))),
        _changed(measure=replace(SPEC.measure, batch_size=7)),
        _changed(measure=replace(SPEC.measure, weights="a/file")),
        _changed(measure=replace(SPEC.measure, sampler=SPEC.config.sampling.sampler)),
        _changed(measure=replace(SPEC.measure, guidance=SPEC.config.sampling.guidance)),
    ],
)
def test_what_changes_no_result_changes_no_identity(same: CellSpec) -> None:
    assert same.id == SPEC.id
    assert len(SPEC.id) == ID_LENGTH


@pytest.mark.parametrize(
    "other",
    [
        _changed(config=replace(SPEC.config, seed=1)),
        _changed(config=replace(SPEC.config, schedule=ShiftedConfig(reference=16))),
        _changed(config=replace(SPEC.config, schedule=CosineConfig())),
        _changed(
            config=replace(
                SPEC.config, schedule=ShiftedConfig(CosineConfig(logsnr_max=14), reference=32)
            )
        ),
        _changed(config=replace(SPEC.config, optim=replace(SPEC.config.optim, lr=2e-4))),
        _changed(config=replace(SPEC.config, ema=replace(SPEC.config.ema, lengths=(0.1, 0.2)))),
        _changed(measure=replace(SPEC.measure, num=10)),
        _changed(measure=replace(SPEC.measure, steps=4)),
        _changed(measure=replace(SPEC.measure, metrics=("kid",))),
        _changed(measure=replace(SPEC.measure, reference="data/others")),
        _changed(budget=Budget(minutes=64)),
        _changed(budget=Budget(images=65)),
        _changed(data=None),
        _changed(data=replace(SPEC.data, loop="synthetic")),
        _changed(data=replace(SPEC.data, parent="0123456789ac")),
        _changed(data=replace(SPEC.data, images=101)),
    ],
)
def test_what_may_change_a_result_changes_the_identity(other: CellSpec) -> None:
    assert other.id != SPEC.id


def test_identities_outlive_new_options() -> None:
    """The default of an option that did not exist when a cell ran is not part of its identity."""
    assert CellSpec(RunConfig(), Measure(), Budget(images=64)).id == "b446fadcf29d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping"),
        ("measure: {}", "needs a section config"),
        ("config: {}\nmeasures: {}", "unknown key measures; did you mean measure?"),
        ("config: {sed: 1}", "unknown key sed; did you mean seed?"),
        ("config: {}\ndata: 3", "data must be null or a section"),
        ("config: {}\ndata: {parent: ../../else}", "data.parent must be a cell"),
        ("config: {}\ndata: {loop: round}", "data.loop must be one of"),
        ("config: {}\ndata: {generation: 1}", "data.parent: generation 0 alone has none"),
        ("config: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_damaged_cell_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / CELL).write_text(text)
    with pytest.raises(ConfigError) as error:
        CellSpec.read(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / CELL) in str(error.value)


def test_only_plain_values_are_written(tmp_path: Path) -> None:
    SPEC.write(tmp_path)
    assert yaml.safe_load((tmp_path / CELL).read_text())["data"]["parent"] == "0123456789ab"
    assert not list(tmp_path.glob("*.tmp"))
