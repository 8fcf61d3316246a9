"""Samples as a shard set: the run's own pictures and labels, marked, pinned, never half there."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.building.stream import BuildReport
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.shards import RawSample, ShardReader
from data_pipelines.store import LocalStore
from data_pipelines.verify import verify
from simple_diffusion.diffusion.generate import to_uint8
from simple_diffusion.training import sample_shards as module
from simple_diffusion.training.grids import grid_labels
from simple_diffusion.training.sample_shards import draw_batches, image_labels, sample_shards
from simple_diffusion.training.sampling import Sampling
from simple_diffusion.training.saved_run import SavedRun, open_run
from tests.conftest import CLASSES
from tests.trained_run import TrainedRun, train_run


@pytest.fixture(scope="module")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_run(tiny_shards, tmp_path_factory.mktemp("runs") / "my_run")


@pytest.fixture(scope="module")
def saved(trained: TrainedRun) -> SavedRun:
    return open_run(trained.path)


def draw(saved: SavedRun, out: Path, **options: Any) -> BuildReport:
    given = {"num": 7, "seed": 3, "progress": False, **options}
    sampling = given.pop("sampling", saved.config.sampling)
    return sample_shards(saved, sampling, out, **given)


def read(report: BuildReport) -> list[RawSample]:
    reader = ShardReader(LocalStore(report.out, report.manifest))
    counts = [shard.samples for shard in report.manifest.shards]
    return [reader.read(s, i) for s, count in enumerate(counts) for i in range(count)]


def pixels(sample: RawSample) -> Tensor:
    with Image.open(io.BytesIO(sample.image)) as image:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def assert_same_pictures(ours: list[RawSample], theirs: Tensor) -> None:
    """Equal but for rounding, and not because there is nothing to see."""
    assert theirs.std() > 0.1
    difference = torch.stack([pixels(one) for one in ours]).int() - to_uint8(theirs).int()
    assert difference.abs().max() <= 1
    assert (difference == 0).float().mean() > 0.99


def test_what_is_written(trained: TrainedRun, saved: SavedRun, tmp_path: Path) -> None:
    report = draw(saved, tmp_path / "out", shard_samples=5)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest == report.manifest
    assert (manifest.num_samples, manifest.synthetic, len(manifest.shards)) == (7, 7, 2)
    assert manifest.classes == CLASSES == trained.trainer.state.data.classes
    assert manifest.source == "drawn by the run my_run: ema_0.250 after 16 images of training"
    assert manifest.licence == "none needed; synthetic"
    assert "7 synthetic" in str(report)
    assert verify(tmp_path / "out", progress=False).sound
    labels = grid_labels(3, range(7), trained.trainer.state.data.class_counts, 4)
    assert labels is not None
    ours = read(report)
    assert [sample.class_ for sample in ours] == [CLASSES[label] for label in labels.tolist()]
    assert len({sample.class_ for sample in ours}) > 1
    assert [sample.key for sample in ours] == [f"{number:08d}" for number in range(7)]
    assert all(sample.synthetic and sample.caption is None for sample in ours)
    assert_same_pictures(ours, trained.images(list(range(7)), labels, seed=3))


def test_chosen_classes_keep_the_labels(
    trained: TrainedRun, saved: SavedRun, tmp_path: Path
) -> None:
    report = draw(saved, tmp_path / "out", classes=["stripe", "1"], num=5)
    assert report.manifest.classes == CLASSES
    assert report.manifest.class_counts == (0, 2, 3)
    labels = torch.tensor([2, 1, 2, 1, 2])
    assert_same_pictures(read(report), trained.images(list(range(5)), labels, seed=3))
    with pytest.raises(ValueError, match="did you mean 'stripe'"):
        draw(saved, tmp_path / "new", classes=["stripes"])


def test_unconditional(tiny_shards: Path, tmp_path: Path) -> None:
    trained = train_run(tiny_shards, tmp_path / "run", model={"num_classes": 0})
    report = draw(open_run(trained.path), tmp_path / "out", num=3)
    assert report.manifest.classes == ()
    assert report.manifest.recipe["guidance"] == 1.0  # though its config says 2
    assert [sample.class_ for sample in read(report)] == [None] * 3
    assert_same_pictures(read(report), trained.images([0, 1, 2], None, seed=3))


def test_a_run_of_unlabelled_images(saved: SavedRun) -> None:
    """A conditional network that saw no labels knows its null class alone."""
    data = replace(saved.data, classes=(), class_counts=())
    unlabelled = replace(saved, data=data)
    labels = image_labels(unlabelled, None, 2, 0)
    samples = list(module._samples(unlabelled, saved.config.sampling, labels, 2, 0, False))
    assert [sample.class_ for sample in samples] == [None, None]


class TestRecipe:
    @pytest.fixture
    def out(self, saved: SavedRun, tmp_path: Path) -> Path:
        draw(saved, tmp_path / "out")
        return tmp_path / "out"

    def test_same_images_are_reused(
        self, saved: SavedRun, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved = open_run(Path(shutil.copytree(saved.path, tmp_path / "elsewhere" / "my_run")))

        def never(*_: object) -> None:
            raise AssertionError("nothing is to be drawn")

        monkeypatch.setattr(SavedRun, "network", never)
        assert draw(saved, out).reused
        assert draw(moved, out).reused
        with pytest.raises(AssertionError, match="nothing is to be drawn"):
            draw(saved, out, num=8, overwrite=True)
        assert Manifest.load(out).num_samples == 7  # the old set is still there

    @pytest.mark.parametrize(
        "change",
        [
            {"num": 6},
            {"seed": 4},
            {"classes": ["circle"]},
            {"sampler": "ddim"},
            {"steps": 3},
            {"spacing": "t"},
            {"guidance": 1.5},
            {"guidance_interval": (-4.0, 99.0)},
            {"precision": "bf16"},
            {"batch_size": 2},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_other_images_are_not(self, saved: SavedRun, out: Path, change: dict[str, Any]) -> None:
        ours = {key: change[key] for key in change if key in ("num", "seed", "classes")}
        rest = {key: value for key, value in change.items() if key not in ours}
        sampling = replace(saved.config.sampling, **rest)
        with pytest.raises(ShardSetError, match=f"built otherwise.*{next(iter(change))}.*-> "):
            draw(saved, out, sampling=sampling, **ours)

    @pytest.mark.parametrize("which", [{"weights": "model"}, {"images_seen": 8}], ids=str)
    def test_other_weights_are_not(self, saved: SavedRun, out: Path, which: dict[str, Any]) -> None:
        with pytest.raises(ShardSetError, match="weights_sha256"):
            draw(open_run(saved.path, **which), out)

    def test_it_is_plain_json(self, saved: SavedRun, tmp_path: Path) -> None:
        """Other readers' parsers know no Infinity."""
        sampling = replace(saved.config.sampling, guidance_interval=(float("-inf"), 3.0))
        draw(saved, tmp_path / "out", sampling=sampling, num=1)

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        text = (tmp_path / "out" / "manifest.json").read_text()
        recipe = json.loads(text, parse_constant=refuse)["recipe"]
        assert recipe["guidance_interval"] == [None, 3.0]
        assert (recipe["run"], recipe["images_seen"], recipe["num"]) == ("my_run", 16, 1)
        assert str(saved.path.parent) not in text


def test_one_batch_at_a_time(saved: SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Sampling.images, []

    def images(self: Sampling, network: Any, indices: range, *rest: Any, **options: Any) -> Tensor:
        calls.append(indices)
        return original(self, network, indices, *rest, **options)

    monkeypatch.setattr(Sampling, "images", images)
    sampling, labels = saved.config.sampling, image_labels(saved, None, 10, 0)
    batches = draw_batches(saved, sampling, labels, 10, 0, progress=False)
    for number, (indices, drawn) in enumerate(batches):
        assert len(calls) == number + 1
        assert drawn.shape == (len(indices), 3, 16, 16)
    assert calls == [range(4), range(4, 8), range(8, 10)]


def test_interrupted_it_leaves_nothing(
    saved: SavedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Sampling.images, []

    def images(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(Sampling, "images", images)
    with pytest.raises(KeyboardInterrupt):
        draw(saved, tmp_path / "out", shard_samples=2)
    assert list(tmp_path.iterdir()) == []
    assert len(read(draw(saved, tmp_path / "out"))) == 7
