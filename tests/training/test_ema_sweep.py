"""Losses of rebuilt averages against those that training measured."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipelines.loader import evaluation_loader
from simple_diffusion.config import RunConfig, build_network
from simple_diffusion.training import ema_sweep
from simple_diffusion.training.data_facts import held_out_path
from simple_diffusion.training.ema_sweep import Sweep, sweep_lengths
from simple_diffusion.training.run_folder import RunError, read_run_config
from simple_diffusion.training.validation import validation_mse

pytestmark = pytest.mark.integration
CPU = torch.device("cpu")
Kept = tuple[Path, dict[str, Tensor]]


@pytest.fixture
def config(kept: Kept) -> RunConfig:
    return read_run_config(kept[0])


@pytest.fixture(scope="module")
def sweep(kept: Kept) -> Sweep:
    return sweep_lengths(read_run_config(kept[0]), [0.10, 0.05, 0.075], CPU, at_once=2)


def validated(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "validation"]


def test_shortest_first_with_the_moment_and_the_data(sweep: Sweep) -> None:
    assert [one.weights for one in sweep.measured] == ["ema_0.050", "ema_0.075", "ema_0.100"]
    assert (sweep.images_seen, sweep.snapshots, sweep.images) == (512, 64, 16)
    assert sweep.logsnr == (-4.0, 0.0, 4.0)
    for one in sweep.measured:
        assert one.mean == pytest.approx(sum(one.eps_mse) / 3)
        assert one.profile_error < 1e-3
    assert sweep.best.mean == min(one.mean for one in sweep.measured)


def test_a_tracked_one_has_the_loss_that_training_measured(sweep: Sweep, kept: Kept) -> None:
    """On the same images with the same noise. The main average is that of length 0.05."""
    last = validated(kept[0])[-1]
    assert (last["weights"], last["images_seen"]) == ("ema_0.050", 512)
    assert sweep.measured[0].eps_mse == pytest.approx(last["eps_mse"], rel=1e-3)


def test_one_never_stored_has_the_loss_of_the_tracked_one(
    sweep: Sweep, kept: Kept, config: RunConfig
) -> None:
    network = build_network(config.model, config.data.image_size)
    network.load_state_dict(kept[1])
    held_out = held_out_path(config.data)
    assert held_out is not None
    sums = validation_mse(
        network.eval(),
        evaluation_loader(held_out, image_size=16, num=16, batch_size=16),
        prediction=config.objective.prediction,
        logsnr=sweep.logsnr,
        seed=config.seed,
        null_label=config.model.num_classes,
        device=CPU,
        check_stop=lambda: None,
    )
    expected = (sums[:-1] / sums[-1]).tolist()
    assert sweep.measured[1].eps_mse == pytest.approx(expected, rel=1e-3)
    assert sweep.measured[0].eps_mse != pytest.approx(expected, rel=1e-3)


def test_few_at_once_are_the_same(sweep: Sweep, config: RunConfig) -> None:
    alone = sweep_lengths(config, [0.05, 0.075, 0.10], CPU, at_once=1)
    for one, other in zip(alone.measured, sweep.measured, strict=True):
        assert one.eps_mse == pytest.approx(other.eps_mse, rel=1e-6)


def test_written_whole(sweep: Sweep, tmp_path: Path) -> None:
    sweep.write(tmp_path / "sweep.json")
    read = json.loads((tmp_path / "sweep.json").read_text())
    assert read["best"] == sweep.best.weights
    assert read["measured"][1]["eps_mse"] == list(sweep.measured[1].eps_mse)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_without_held_out_images(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    without = replace(config, validation=replace(config.validation, images=0))
    with pytest.raises(RunError, match=r"no held-out images to measure on; build .*--validation"):
        sweep_lengths(without, [0.05], CPU)
    monkeypatch.setattr(ema_sweep, "held_out_path", lambda data: None)
    with pytest.raises(RunError, match="no held-out images"):
        sweep_lengths(config, [0.05], CPU)
