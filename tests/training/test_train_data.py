"""Training and its data: mixtures, buckets, data that cannot be had, signals while waiting."""

import io
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.building.stream import Sample, write_shards
from data_pipelines.dataset import Batch
from data_pipelines.manifest import Manifest, ShardSetError
from simple_diffusion.config_files import load_config
from simple_diffusion.training.assemble import assemble
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.trainer import Trainer, TrainingError
from tests.training.runs import last_tensors, metrics, train

pytestmark = pytest.mark.integration
WriteConfig = Callable[..., Path]
SIZES = ((16, 16), (24, 12), (12, 24))  # width, height


def other_set(root: Path, count: int = 40) -> Path:
    """Images of three shapes and two classes, one of which `tiny_shards` has too."""

    def samples() -> Iterator[Sample]:
        for number in range(count):
            width, height = SIZES[number % 3]
            pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            name = ("square", "blob")[number % 2]
            yield Sample(f"other-{number}", buffer.getvalue(), "png", width, height, name)

    write_shards(
        samples,
        root,
        source="other",
        licence="free",
        recipe={"n": count},
        shard_samples=9,
        progress=False,
    )
    return root


def trainer_of(config: Path, *overrides: str) -> Trainer:
    return assemble(load_config(config, overrides))


def watch(trainer: Trainer, seen: list[Batch]) -> None:
    """Keep what the loader hands out."""
    loader = trainer.loader

    def watched(images_seen: int) -> Iterator[Batch]:
        for batch in loader(images_seen):
            seen.append(batch)
            yield batch

    trainer.loader = watched


class TestMixture:
    def test_proportions_labels_and_resume(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        other = other_set(tmp_path / "other")
        mixed = {"mix_with": [{"path": str(other), "weight": 3.0}]}
        config = tiny_config(data=mixed, model={"num_classes": 4})
        trainer = trainer_of(config, f"--run_dir={tmp_path / 'whole'}")
        seen: list[Batch] = []
        watch(trainer, seen)
        trainer.run()
        sets = Counter(number for batch in seen for number in batch.sets.tolist())
        assert sets == {0: 40, 1: 120}
        lines = [line for line in metrics(tmp_path / "whole") if line["kind"] == "train"]
        for line in lines:
            assert line["mix/tiny"] + line["mix/other"] == pytest.approx(1)
        drawn = [line["images_seen"] for line in lines]
        windows = np.diff(drawn, prepend=0)
        logged = sum(line["mix/other"] * n for line, n in zip(lines, windows, strict=True))
        assert logged == pytest.approx(120)
        names = ("circle", "square", "stripe", "blob")
        for batch in seen:
            for key, label in zip(batch.keys, batch.labels.tolist(), strict=True):
                number = int(key.partition("-")[2])
                kinds = ("circle", "square", "stripe") if key[0] == "t" else ("square", "blob")
                assert names[label] == kinds[number % len(kinds)]

        stopped = trainer_of(config, f"--run_dir={tmp_path / 'stopped'}")
        loader = stopped.loader

        def stops(images_seen: int) -> Iterator[Batch]:
            for number, batch in enumerate(loader(images_seen)):
                if number == 7:
                    stopped.agreement.signals.hear(signal.SIGTERM)
                yield batch

        stopped.loader = stops
        assert stopped.run().received == signal.SIGTERM
        trainer_of(config, f"--run_dir={tmp_path / 'stopped'}").run()
        assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")

    def test_too_many_classes_together(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        mixed = {"mix_with": [{"path": str(other_set(tmp_path / "other"))}]}
        with pytest.raises(RunError, match=r"tiny \+ .*other has 4 classes"):
            trainer_of(tiny_config(data=mixed))

    def test_twice_the_same_set(self, tiny_config: WriteConfig, tiny_shards: Path) -> None:
        with pytest.raises(ValueError, match="mixed in twice"):
            trainer_of(tiny_config(data={"mix_with": [{"path": f"{tiny_shards}/"}]}))


class TestBuckets:
    def test_every_step_has_one_shape(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        other = other_set(tmp_path / "other", 120)
        config = tiny_config(
            data={"path": str(other), "buckets": {"max_aspect": 4.0, "multiple": 4}},
            model={"num_classes": 2},
            objective={"multiscale_from": 8},
        )
        trainer = trainer_of(config, "--train.total_images=480")
        seen: list[Batch] = []
        watch(trainer, seen)
        trainer.run()
        shapes = Counter(tuple(batch.images.shape[2:]) for batch in seen)
        assert set(shapes) == {(16, 16), (12, 24), (24, 12)}
        assert sum(shapes.values()) == 60
        assert max(shapes.values()) - min(shapes.values()) <= 1  # a third of the images each
        # Each image once an epoch, but for less than a batch of each shape.
        keys = Counter(key for batch in seen for key in batch.keys)
        assert sum(keys.values()) == 480
        assert set(keys.values()) <= {3, 4, 5}
        losses = [line["loss"] for line in metrics(tmp_path / "run") if line["kind"] == "train"]
        assert np.isfinite(losses).all()

    def test_sides_must_fit_the_network(self, tiny_config: WriteConfig) -> None:
        buckets = {"buckets": {"max_aspect": 2.0, "multiple": 6}}
        with pytest.raises(RunError, match=r"multiples of 4.*use a multiple of 4"):
            trainer_of(tiny_config(data=buckets))

    def test_sets_that_do_not_know_their_shapes(
        self, tiny_config: WriteConfig, tiny_shards: Path, tmp_path: Path
    ) -> None:
        old = tmp_path / "old"
        shutil.copytree(tiny_shards, old)
        text = (old / "manifest.json").read_text()
        assert '"aspects"' in text
        (old / "manifest.json").write_text(text.replace('"aspects"', '"unknown"'))
        buckets = {"path": str(old), "buckets": {"max_aspect": 2.0, "multiple": 4}}
        with pytest.raises(ShardSetError, match=r"does not tell the shapes.*data index"):
            trainer_of(tiny_config(data=buckets))


class TestGoingOn:
    """What the order of the images depends on may not change within a run."""

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ("--data.weight=2.0", "data.weight"),
            ("--data.buckets.max_aspect=2.0", "data.buckets.max_aspect"),
            ("mixed", "data.mix_with.0.weight"),
        ],
    )
    def test_is_refused_with_other_values(
        self, tiny_config: WriteConfig, tmp_path: Path, change: str, key: str
    ) -> None:
        other = str(other_set(tmp_path / "other"))
        data = {"mix_with": [{"path": other, "weight": 3.0}], "buckets": {"multiple": 4}}
        config = tiny_config(data=data, model={"num_classes": 4}, train={"total_images": 16})
        trainer_of(config).run()
        before = (tmp_path / "run" / "config.yaml").read_text()
        if change == "mixed":
            data["mix_with"] = [{"path": other, "weight": 1.0}]
            config = tiny_config(data=data, model={"num_classes": 4}, train={"total_images": 16})
            change = "--seed=0"
        with pytest.raises(RunError, match=rf"cannot be continued:\s+{key}: "):
            trainer_of(config, change)
        assert (tmp_path / "run" / "config.yaml").read_text() == before

    def test_a_set_may_move(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        other = other_set(tmp_path / "other")
        model = {"num_classes": 4}
        trainer_of(
            tiny_config(data={"mix_with": [{"path": str(other)}]}, model=model),
            "--train.total_images=16",
        ).run()
        other.rename(tmp_path / "moved")
        moved = tiny_config(data={"mix_with": [{"path": str(tmp_path / "moved")}]}, model=model)
        trainer = trainer_of(moved, "--train.total_images=32")
        trainer.run()
        assert trainer.images_seen == 32


class TestTrouble:
    def test_data_that_cannot_be_had_saves_and_stops(
        self, tiny_config: WriteConfig, tmp_path: Path
    ) -> None:
        config = tiny_config()
        trainer_of(config, f"--run_dir={tmp_path / 'unbroken'}").run()
        run = tmp_path / "broken"
        trainer = trainer_of(config, f"--run_dir={run}")
        loader = trainer.loader

        def fails(images_seen: int) -> Iterator[Batch]:
            for number, batch in enumerate(loader(images_seen)):
                if number == 9:
                    raise ShardSetError("shard-000007.tar cannot be fetched")
                yield batch

        trainer.loader = fails
        with pytest.raises(TrainingError, match=r"shard-000007\.tar.*saved at image 72"):
            trainer.run()
        assert max((run / "checkpoints").iterdir()).name == "000000000072"
        trainer_of(config, f"--run_dir={run}").run()
        assert metrics(tmp_path / "unbroken") == metrics(run)
        ours, theirs = last_tensors(tmp_path / "unbroken"), last_tensors(run)
        assert [name for name in ours if not ours[name].equal(theirs[name])] == []

    def test_a_signal_is_heard_while_waiting_for_data(
        self, tiny_config: WriteConfig, tmp_path: Path
    ) -> None:
        trainer = trainer_of(tiny_config())
        loader = trainer.loader

        def stalls(images_seen: int) -> Iterator[Batch]:
            for number, batch in enumerate(loader(images_seen)):
                if number == 3:
                    kill = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
                    kill.start()
                    deadline = time.monotonic() + 60
                    while time.monotonic() < deadline:
                        time.sleep(0.01)
                    pytest.fail("the signal went unheard")
                yield batch

        trainer.loader = stalls
        assert trainer.run().received == signal.SIGUSR1
        assert max((tmp_path / "run" / "checkpoints").iterdir()).name == "000000000024"

    def test_two_processes_stop_together(
        self, tiny_config: WriteConfig, tiny_shards: Path, tmp_path: Path
    ) -> None:
        """A shard goes bad after the start: whoever needs it first says so, and all save."""
        root = tmp_path / "set"
        shutil.copytree(tiny_shards, root)
        manifest = Manifest.load(root)
        shard = root / manifest.shards[-1].path
        shard.unlink()

        with open(shard, "wb") as file:  # as long as it was, but empty
            file.truncate(manifest.shards[-1].bytes)
        config = tiny_config(data={"path": str(root), "max_bad_fraction": 0.01})
        run = train(config, "--train.total_images=400", processes=2)
        assert run.code != 0
        assert manifest.shards[-1].path in run.output
        saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
        assert saved
        assert f"saved at image {int(max(saved))}" in run.output
