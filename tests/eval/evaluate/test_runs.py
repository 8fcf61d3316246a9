import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image

from eval.evaluate.comparison import Reference
from eval.evaluate.runs import evaluate_run
from eval.metrics import score
from eval.parts import PartError
from eval.statistics import FeatureStatistics, image_digests
from simple_diffusion.diffusion.generate import to_uint8
from simple_diffusion.training.saved_run import SavedRun, open_run
from tests.eval.fake_extractor import CLASSES, DIM, FakeExtractor
from tests.trained_run import TrainedRun, train_run

NUM = 22
METRICS = ("kid", "fd", "is")


@pytest.fixture(scope="module")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_run(tiny_shards, tmp_path_factory.mktemp("evaluate") / "run")


def evaluate(saved: SavedRun, shards: Path, cache: Path, extractor=None, metrics=METRICS, **more):
    reference = Reference(shards / "validation", 16, extractor or FakeExtractor(), cache=cache)
    options = {"num": NUM, "seed": 5, "sampling": saved.config.sampling, **more}
    return evaluate_run(saved, metrics, reference, **options)


class Process:
    """One of several processes, taken in turn by one test: nobody waits for the others."""

    def __init__(self, rank: int, processes: int) -> None:
        self.process_index, self.num_processes = rank, processes
        self.is_main_process = rank == 0
        self.device = torch.device("cpu")

    def wait_for_everyone(self) -> None: ...


@pytest.fixture
def saved(trained: TrainedRun, tmp_path: Path) -> SavedRun:
    """The run as a fresh copy, so that nothing was evaluated yet."""
    shutil.copytree(trained.path, tmp_path / "run")
    return open_run(tmp_path / "run")


def test_the_figures_are_those_of_the_trainers_images(
    trained: TrainedRun, saved: SavedRun, tiny_shards: Path, tmp_path: Path
) -> None:
    record = evaluate(saved, tiny_shards, tmp_path)
    from simple_diffusion.training.grids import grid_labels

    labels = grid_labels(5, range(NUM), saved.data.class_counts, 4)
    images = to_uint8(trained.images(list(range(NUM)), labels, seed=5))
    ours, extractor = FeatureStatistics(DIM, CLASSES), FakeExtractor()
    found = extractor(images)
    ours.update(found.features, image_digests(images), probabilities=found.probabilities)
    real = Reference(tiny_shards / "validation", 16, extractor, cache=tmp_path)
    expected = score(METRICS, ours, real.statistics(PartialState(cpu=True)))
    for name in METRICS:
        figure = record["figures"][f"{name}_fake"]
        assert figure["value"] == pytest.approx(expected[name].value, rel=1e-4)
    assert record["samples"]["num"] == NUM
    assert record["samples"]["sampler"] == "dpm++2m"
    assert record["samples"]["guidance"] == 2.0
    assert record["extractor"]["sha256"] == "0" * 64
    assert json.loads((saved.path / "evaluation.json").read_text()) == json.loads(
        json.dumps(record)
    )


def test_the_same_on_any_number_of_processes(
    saved: SavedRun, tiny_shards: Path, tmp_path: Path
) -> None:
    alone = evaluate(saved, tiny_shards, tmp_path)["figures"]
    for processes in (2, 4):
        for path in (saved.path / "evaluations").rglob("part-*"):
            path.unlink()
        drawn = 0
        for rank in reversed(range(processes)):  # the main process comes last, and finds all parts
            extractor = FakeExtractor()
            state = Process(rank, processes)
            with nullcontext() if rank == 0 else pytest.raises(PartError):  # others' are not drawn
                record = evaluate(saved, tiny_shards, tmp_path, extractor, state=state)
            drawn += extractor.seen
        assert record["figures"] == alone
        assert drawn == NUM


def test_an_interrupted_evaluation_goes_on(
    saved: SavedRun, tiny_shards: Path, tmp_path: Path
) -> None:
    evaluate(saved, tiny_shards, tmp_path, num=4)  # fills the reference's cache
    with pytest.raises(KeyboardInterrupt):
        evaluate(saved, tiny_shards, tmp_path, FakeExtractor(limit=8))
    further = FakeExtractor()
    record = evaluate(saved, tiny_shards, tmp_path, further)
    assert further.seen == NUM - 8
    again = FakeExtractor()
    assert evaluate(saved, tiny_shards, tmp_path, again, metrics=("kid",))["figures"] == {
        "kid_fake": record["figures"]["kid_fake"]
    }
    assert again.seen == 0  # another choice of metrics draws nothing anew


def test_other_samples_are_drawn_anew(saved: SavedRun, tiny_shards: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    first = evaluate(saved, tiny_shards, tmp_path)["figures"]
    for more in (
        {"seed": 6},
        {"sampling": replace(saved.config.sampling, steps=3)},
        {"sampling": replace(saved.config.sampling, guidance=1.0)},
    ):
        extractor = FakeExtractor()
        assert evaluate(saved, tiny_shards, tmp_path, extractor, **more)["figures"] != first
        assert extractor.seen == NUM
    other = open_run(saved.path, "model")
    assert evaluate(other, tiny_shards, tmp_path)["figures"] != first


def test_pictures(saved: SavedRun, tiny_shards: Path, tmp_path: Path) -> None:
    record = evaluate(saved, tiny_shards, tmp_path, neighbours=3)
    (folder,) = (one for one in (saved.path / "evaluations").iterdir() if one.is_dir())
    grid = np.asarray(Image.open(folder / "grid.png"))
    first = np.asarray(Image.open(folder / "samples" / "000000.png"))
    assert np.array_equal(grid[:16, :16], first)
    rows = record["memorisation"]["rows"]
    page = np.asarray(Image.open(folder / "neighbours.png"))
    assert page.shape == (3 * 16, 6 * 16, 3)
    sample = np.asarray(Image.open(folder / "samples" / f"{rows[1]:06d}.png"))
    assert np.array_equal(page[16:32, :16], sample)

    (folder / "samples" / "000001.png").unlink()
    before = (folder / "grid.png").read_bytes()
    evaluate(saved, tiny_shards, tmp_path)  # draws the lost picture again
    assert (folder / "grid.png").read_bytes() == before


def test_a_diverged_model_has_no_score(
    saved: SavedRun, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, network: object, indices: range, *_: object, **__: object):
        return torch.full((len(indices), 3, 16, 16), float("nan"))

    monkeypatch.setattr("simple_diffusion.training.sampling.Sampling.images", broken)
    with pytest.raises(ValueError, match="diverged"):
        evaluate(saved, tiny_shards, tmp_path)


def test_by_class(saved: SavedRun, tiny_shards: Path, tmp_path: Path) -> None:
    record = evaluate(saved, tiny_shards, tmp_path, num=90, by_class=True)
    assert set(record["by_class"]) <= {"circle", "square", "stripe"}


def test_bad_requests(saved: SavedRun, tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kidd"):
        evaluate(saved, tiny_shards, tmp_path, metrics=("kidd",))
    with pytest.raises(ValueError, match="nowhere"):
        evaluate(saved, tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="'density' needs 6 images"):
        evaluate(saved, tiny_shards, tmp_path, metrics=("density",), num=4)
    options = {"num": 8, "seed": 5, "sampling": saved.config.sampling}
    training = Reference(tiny_shards, 16, FakeExtractor(), cache=tmp_path)
    with pytest.raises(ValueError, match="is the training set"):
        evaluate_run(saved, ("kid",), training, neighbours=2, **options)
    other = tmp_path / "other"
    shutil.copytree(tiny_shards / "validation", other)
    document = json.loads((other / "manifest.json").read_text())
    document["classes"].reverse()
    (other / "manifest.json").write_text(json.dumps(document))
    strange = Reference(other, 16, FakeExtractor(), cache=tmp_path)
    with pytest.raises(ValueError, match="classes"):
        evaluate_run(saved, ("kid",), strange, by_class=True, **options)
