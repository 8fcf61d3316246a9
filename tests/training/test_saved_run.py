"""Runs opened for reading: the right weights, nothing changed, and what cannot be read."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.manifest import Manifest
from data_pipelines.shard_sets import ShardSets
from simple_diffusion.training.data_facts import DataFacts
from simple_diffusion.training.grids import class_labels, grid_labels
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.saved_run import open_run
from simple_diffusion.training.state import (
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
)
from tests.trained_run import TrainedRun, train_run

STATES: dict[str, Any] = {
    "source": "somewhere",
    "licence": "CC0",
    "images": 7,
    "classes": ["a", "b"],
    "class_counts": [3, 4],
}


@pytest.fixture(scope="module")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_run(tiny_shards, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(trained: TrainedRun, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained.path, tmp_path / "run"))


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def rewrite_state(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the newest checkpoint's state, and save it as `CheckpointStore` would."""
    newest = find_checkpoint(run / "checkpoints")
    groups = {name: newest.tensors(name) for name in newest.groups()}
    state = dict(newest.state)
    change(state)
    store = CheckpointStore(run / "checkpoints", keep=9)
    store.save(int(newest.path.name), groups, state)
    store.wait()


class TestOpenRun:
    def test_newest_checkpoint_and_first_average(self, trained: TrainedRun) -> None:
        before = tree(trained.path)
        saved = open_run(trained.path)
        assert (saved.weights, saved.images_seen) == ("ema_0.250", 16)
        network = saved.network(torch.device("cpu"))
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
        expected = trained.network("ema_0.250").state_dict()
        assert network.state_dict().keys() == expected.keys()
        assert all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())
        assert tree(trained.path) == before

    @pytest.mark.parametrize("weights", ["model", "ema_0.050"])
    def test_other_weights(self, trained: TrainedRun, weights: str) -> None:
        expected = trained.network(weights).state_dict()
        first = trained.network("ema_0.250").state_dict()
        assert any(not torch.equal(expected[key], first[key]) for key in expected)
        given = open_run(trained.path, weights).state_dict()
        assert all(torch.equal(given[key], expected[key]) for key in expected)

    def test_an_older_checkpoint(self, trained: TrainedRun) -> None:
        assert open_run(trained.path, images_seen=8).images_seen == 8

    def test_the_data_need_not_be_there(self, trained: TrainedRun, tiny_shards: Path) -> None:
        manifest = Manifest.load(tiny_shards)
        facts = open_run(trained.path).data
        assert facts.classes == manifest.classes == ("circle", "square", "stripe")
        assert facts.class_counts == manifest.class_counts
        assert facts.images == manifest.num_samples == sum(facts.class_counts)
        assert (facts.source, facts.licence) == ("made by the tests", "none needed")

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="not a run"):
            open_run(tmp_path)

    def test_no_checkpoint(self, run: Path) -> None:
        shutil.rmtree(run / "checkpoints")
        with pytest.raises(CheckpointError, match="no checkpoint there yet"):
            open_run(run)

    def test_no_such_checkpoint(self, trained: TrainedRun) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint at image 9; there are 8, 16"):
            open_run(trained.path, images_seen=9)

    @pytest.mark.parametrize("weights", ["ema_0.05", "optimizer", "../../secret"])
    def test_no_such_weights(self, trained: TrainedRun, weights: str) -> None:
        with pytest.raises(RunError, match=re.escape("It has ema_0.050, ema_0.250, model")):
            open_run(trained.path, weights)

    def test_weights_of_another_network(self, run: Path) -> None:
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("num_classes: 4", "num_classes: 5"))
        with pytest.raises(CheckpointError, match="does not fit"):
            open_run(run).network(torch.device("cpu"))

    @pytest.mark.parametrize(
        "change",
        [
            lambda state: state.pop("data"),
            lambda state: state.pop("images_seen"),
            lambda state: state.update(images_seen="many"),
            lambda state: state.update(data=["circle"]),
            lambda state: state["data"].update(classes="circle"),
        ],
    )
    def test_a_state_that_says_nothing(
        self, run: Path, change: Callable[[dict[str, Any]], None]
    ) -> None:
        rewrite_state(run, change)
        with pytest.raises(CheckpointError, match="000000000016"):
            open_run(run)


class TestDataFacts:
    def test_round_trip(self) -> None:
        facts = DataFacts.from_state(STATES)
        assert facts == DataFacts("somewhere", "CC0", 7, ("a", "b"), (3, 4))
        assert json.loads(json.dumps(facts.to_state())) == STATES

    def test_an_unconditional_model_needs_no_classes(self, tiny_shards: Path) -> None:
        facts = DataFacts.of(ShardSets.of(tiny_shards), 0)
        assert (facts.classes, facts.class_counts) == ((), ())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"source": 3}, "'source' must be a str"),
            ({"images": None}, "'images' must be a int"),
            ({"classes": ["a", 2]}, "'classes' must be a list of strings"),
            ({"class_counts": [3, -4]}, "'class_counts' must be a list of counts"),
            ({"class_counts": [3, True]}, "'class_counts' must be a list of counts"),
            ({"class_counts": [7]}, "2 'classes', but 1 'class_counts'"),
        ],
    )
    def test_untrusted(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            DataFacts.from_state({**STATES, **change})


class TestGridLabels:
    def test_in_proportion_and_by_index_alone(self) -> None:
        labels = grid_labels(5, range(20_000), [1, 0, 3], 3)
        assert labels is not None
        shares = torch.bincount(labels, minlength=4) / 20_000
        torch.testing.assert_close(shares, torch.tensor([0.25, 0, 0.75, 0]), rtol=0, atol=0.02)
        some = grid_labels(5, [17, 4, 19_999], [1, 0, 3], 3)
        assert some is not None
        assert some.tolist() == [int(labels[i]) for i in (17, 4, 19_999)]
        other = grid_labels(6, range(20_000), [1, 0, 3], 3)
        assert other is not None
        assert not torch.equal(labels, other)

    def test_classes_without_images(self) -> None:
        nulls = grid_labels(0, range(3), [0, 0], 2)
        assert nulls is not None
        assert nulls.tolist() == [2, 2, 2]
        assert grid_labels(0, range(3), [], None) is None

    def test_edges(self) -> None:
        quantiles = torch.tensor([0.0, 0.2499, 0.25, 0.999], dtype=torch.float64)
        assert class_labels([1, 0, 3], quantiles).tolist() == [0, 0, 2, 2]
