"""The job of a cell, for real: a tiny network trains, draws and is scored."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines.manifest import Manifest
from eval.ablate.cell import main, run_cell
from eval.ablate.generations import generation_data
from eval.ablate.results import read_result
from eval.ablate.spec import Budget, CellSpec, DataRecipe, Measure
from simple_diffusion.config import RunConfig
from simple_diffusion.config_files import load_config
from simple_diffusion.plan.counts import count_flops
from simple_diffusion.training.evaluator import Evaluator

MEASURE = Measure(metrics=("kid", "precision"), num=12, steps=3, guidance=1.0)
TINY = {"validation": {"every_images": 80, "images": 8, "logsnr": [-4, 0, 4]}}


@pytest.fixture
def config(tiny_config: Callable[..., Path], tmp_path: Path, monkeypatch) -> RunConfig:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Evaluator, "_report", lambda self: None)  # it takes longer than the rest
    return load_config(tiny_config(train={"total_images": 80}, **TINY))


def cell(folder: Path, config: RunConfig, **options) -> Path:
    spec = CellSpec(config, **{"measure": MEASURE, "budget": Budget(images=80), **options})
    folder.mkdir(parents=True)
    spec.write(folder)
    return folder


@pytest.mark.integration
def test_a_cell_from_start_to_result(config: RunConfig, tmp_path: Path) -> None:
    folder = cell(tmp_path / "cells" / "one", config)
    assert run_cell(folder) == 0
    result = read_result(folder)
    assert result is not None
    assert set(result.scores) == {"kid_lite0", "precision_lite0"}
    assert result.images == 80
    assert result.logsnr == (-4.0, 0.0, 4.0)
    assert (result.schedule[1][0], result.schedule[1][-1]) == pytest.approx((15.0, -15.0))
    forward, step = count_flops(config)
    assert result.train_flops == step * 80
    assert result.sample_flops == forward * 3 * 12
    assert result.pins["steps"] == 3
    assert result.pins["extractor"]["name"] == "lite0"
    assert (folder / "grid.png").is_file()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert not [line for line in lines if json.loads(line)["kind"] == "scores"]
    spent = json.loads((folder / "seconds.json").read_text())
    assert result.seconds["evaluate"] == spent["evaluate"] > 0
    before = (folder / "result.json").read_bytes()
    assert run_cell(folder) == 0  # nothing to do
    assert (folder / "result.json").read_bytes() == before


@pytest.mark.integration
def test_a_curve_ends_at_the_result(config: RunConfig, tmp_path: Path) -> None:
    measure = replace(MEASURE, curve_every_images=40)
    folder = cell(tmp_path / "cells" / "one", config, measure=measure)
    assert run_cell(folder) == 0
    result = read_result(folder)
    assert result is not None
    assert [seen for seen, _ in result.curve] == [0, 40, 80]
    for name, score in result.scores.items():
        assert result.curve[-1][1][name].value == pytest.approx(score.value, rel=1e-5)


@pytest.mark.integration
def test_minutes_become_images_once(config: RunConfig, tmp_path: Path) -> None:
    folder = cell(tmp_path / "cells" / "one", config, budget=Budget(minutes=0.01))
    assert run_cell(folder) == 0
    planned = json.loads((folder / "budget.json").read_text())
    result = read_result(folder)
    assert result is not None
    assert result.images == planned["images"] == int(0.6 * planned["images_per_second"]) // 8 * 8
    (folder / "result.json").unlink()
    (folder / "budget.json").write_text(json.dumps({**planned, "images_per_second": 1e9}))
    assert run_cell(folder) == 0
    assert read_result(folder).images == planned["images"]  # not measured again
    assert not (folder / "pilot").exists()


def test_errors_are_one_line(config: RunConfig, tmp_path: Path, monkeypatch, capsys) -> None:
    bad = replace(config, data=replace(config.data, path=str(tmp_path / "nowhere")))
    folder = cell(tmp_path / "cells" / "one", bad)
    monkeypatch.setattr("sys.argv", ["cell", str(folder)])
    assert main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error


@pytest.mark.integration
def test_a_chain_of_generations(config: RunConfig, tmp_path: Path) -> None:
    cells, real = tmp_path / "cells", Path(config.data.path)
    first = DataRecipe(parent=None, generation=0, images=20)
    parent = "0" * 11 + "1"
    assert run_cell(cell(cells / parent, config, data=first)) == 0
    manifest = Manifest.load(cells / parent / "data")
    assert (manifest.num_samples, manifest.synthetic) == (20, 0)
    assert manifest.classes == Manifest.load(real).classes
    shares = {"synthetic": (20, 20), "augmented": (40, 20), "fresh": (40, 20)}
    for loop, (count, synthetic) in shares.items():
        recipe = DataRecipe(parent=parent, loop=loop, generation=1, images=20)
        folder = cell(cells / loop, config, data=recipe)
        found = Manifest.load(generation_data(CellSpec.read(folder), folder))
        assert (found.num_samples, found.synthetic) == (count, synthetic), loop
        assert found.classes == manifest.classes
    assert keys(cells / "augmented" / "data") == keys(cells / parent / "data")
    assert not keys(cells / "fresh" / "data") & keys(cells / parent / "data")
    assert run_cell(cells / "synthetic") == 0
    too_many = DataRecipe(parent=parent, loop="fresh", generation=5, images=20)
    folder = cell(cells / "too many", config, data=too_many)
    with pytest.raises(ValueError, match="needs 120"):
        generation_data(CellSpec.read(folder), folder)


def keys(root: Path) -> set[str]:
    """The real samples of a set, by the keys that they had at first."""
    from data_pipelines.shards import ShardReader
    from data_pipelines.store import LocalStore

    manifest = Manifest.load(root)
    reader = ShardReader(LocalStore(root, manifest), max_open=1)
    found = (
        reader.read(shard, index)
        for shard, size in enumerate(manifest.shards)
        for index in range(size.samples)
    )
    return {sample.key.partition("tiny-")[2] for sample in found if "tiny-" in sample.key}
