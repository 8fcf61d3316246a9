"""Scores during training: real figures of real samples, the same on any number of processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from simple_diffusion.config_files import load_config
from simple_diffusion.training.assemble import assemble
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.saved_run import open_run
from tests.training import runs

SCORES = {"every_images": 80, "num": 22, "metrics": ["kid", "precision"]}


def scored(run: Path) -> list[dict]:
    return [line for line in runs.metrics(run) if line["kind"] == "scores"]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(runs.ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.integration
@pytest.mark.usefixtures("drawn_reports")
def test_scores_are_those_of_evaluate(tiny_config: Callable[..., Path], cache: Path) -> None:
    from eval.evaluate.comparison import Reference
    from eval.evaluate.runs import evaluate_run
    from eval.features import open_extractor

    config = load_config(tiny_config(scores=SCORES))
    trainer = assemble(config)
    trainer.run()
    lines = scored(Path(config.run_dir))
    assert [line["images_seen"] for line in lines] == [0, 80, 160]
    assert [line["weights"] for line in lines] == ["raw", "ema_0.100", "ema_0.100"]
    device = trainer.accelerator.device
    reference = Reference(
        Path(config.data.path) / "validation", 16, open_extractor("lite0", device=device)
    )
    record = evaluate_run(
        open_run(Path(config.run_dir)),
        config.scores.metrics,
        reference,
        num=22,
        seed=config.seed,
        sampling=config.sampling,
    )
    for name, figure in lines[-1]["scores"].items():
        for key, value in figure.items():
            expected = record["figures"][name][key]
            assert value == (None if expected is None else pytest.approx(expected, rel=1e-5)), name
    assert "Scores" in (Path(config.run_dir) / "report.html").read_text()


@pytest.mark.integration
def test_two_processes_score_alike(tiny_config: Callable[..., Path], cache: Path) -> None:
    """At the start the weights are equal, bit for bit: so must the figures be."""
    found = []
    for processes in (1, 2):
        path = tiny_config(
            scores=SCORES, train={"total_images": 8}, run_dir=str(cache / str(processes))
        )
        done = runs.train(path, processes=processes)
        assert done.code == 0, done.output
        found.append(scored(cache / str(processes))[0])
    one, two = found
    assert json.dumps(one["scores"]) == json.dumps(two["scores"])


def test_what_scores_need(tiny_config: Callable[..., Path], tiny_shards: Path, cache: Path) -> None:
    bare = str(tiny_shards / "validation")  # a set without a held-out part
    with pytest.raises(RunError, match="no held-out images"):
        assemble(load_config(tiny_config(scores=SCORES, data={"path": bare})))
    with pytest.raises(ValueError, match="lite0"):
        assemble(load_config(tiny_config(scores={**SCORES, "extractor": "lite"})))
    with pytest.raises(ValueError, match="kid"):
        assemble(load_config(tiny_config(scores={**SCORES, "metrics": ["kit"]})))
