"""Whole runs: resumed exactly, split over micro-batches and processes, refused where need be."""

import json
import math
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from data_pipelines.manifest import Manifest
from simple_diffusion.config_files import load_config
from simple_diffusion.training.assemble import assemble
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.signals import EXIT_INTERRUPTED, EXIT_REQUEUE
from simple_diffusion.training.state import CheckpointError
from simple_diffusion.training.trainer import Trainer
from tests.training.runs import ENVIRONMENT, Started, command, last_tensors, metrics, train

pytestmark = pytest.mark.integration
WriteConfig = Callable[..., Path]
KILLS = 10


def run_here(config: Path, *overrides: str) -> Path:
    """Train in this process; returns the run folder."""
    loaded = load_config(config, overrides)
    assemble(loaded).run()
    return Path(loaded.run_dir)


def stop_while_drawing(trainer: Trainer) -> None:
    """Make a signal arrive when the first grid is begun."""
    draw = trainer.evaluator.draw

    def draw_stopped(*args: object) -> None:
        trainer.agreement.signals.hear(signal.SIGTERM)
        draw(*args)  # type: ignore[arg-type]

    object.__setattr__(trainer.evaluator, "draw", draw_stopped)


def say_synthetic(root: Path, count: int) -> None:
    """Make a set's manifest say that a model made so many of its images."""
    replace(Manifest.load(root), synthetic=count).save(root)


def assert_same(first: Path, second: Path) -> None:
    assert metrics(first) == metrics(second)
    ours, theirs = last_tensors(first), last_tensors(second)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("optimizer/") for name in ours)
    assert any(name.startswith("ema_") for name in ours)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []
    for name in ("final.png", "000000000080.png"):
        assert (first / "samples" / name).read_bytes() == (second / "samples" / name).read_bytes()


@pytest.fixture(scope="module")
def one_thread() -> None:
    """The runs compared bit for bit use as many threads as the other processes."""
    torch.set_num_threads(1)


@pytest.mark.usefixtures("one_thread")
class TestResume:
    """The same command again gives the run that was never stopped."""

    def test_killed_at_arbitrary_moments(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        config = tiny_config(
            checkpoint={"every_images": 16}, model={"dropout": 0.1}, train={"total_images": 640}
        )
        unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
        begun = time.monotonic()
        assert train(config, f"--run_dir={unbroken}").code == 0
        length = time.monotonic() - begun
        moments = random.Random(0)
        codes = [
            self._kill_within(Started(config, f"--run_dir={broken}"), broken, moments, length)
            for _ in range(KILLS)
        ]
        assert codes.count(-9) > KILLS // 2
        finished = train(config, f"--run_dir={broken}")
        assert finished.code == 0, finished.output
        assert_same(unbroken, broken)

    @staticmethod
    def _kill_within(started: Started, run: Path, moments: random.Random, length: float) -> None:
        """Wait for training to be under way, then kill at a moment within a few steps and saves."""
        before = (run / "metrics.jsonl").stat().st_mtime if run.is_dir() else 0.0
        deadline = time.monotonic() + 10 * length
        while started.processes[0].is_alive() and time.monotonic() < deadline:
            lines = run / "metrics.jsonl"
            if lines.exists() and lines.stat().st_mtime > before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.25))
        return started.kill()[0].code

    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGTERM, EXIT_REQUEUE), (signal.SIGINT, EXIT_INTERRUPTED)],
    )
    def test_signals_save_and_exit(
        self, tiny_config: WriteConfig, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        config = tiny_config(log={"every_images": 8}, train={"total_images": 1600})
        run = tmp_path / "run"
        process = subprocess.Popen(
            command(config), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 5:
            time.sleep(0.02)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code
        assert "saved; the same command resumes" in output
        newest = max((run / "checkpoints").iterdir())
        assert json.loads((newest / "state.json").read_text())["images_seen"] % 8 == 0
        assert f"at image {int(newest.name)}" in output

    def test_interrupted_validation_is_done_again(
        self, tiny_config: WriteConfig, tmp_path: Path
    ) -> None:
        config = tiny_config()
        unbroken = run_here(config, f"--run_dir={tmp_path / 'unbroken'}")
        broken = f"--run_dir={tmp_path / 'broken'}"
        trainer = assemble(load_config(config, [broken]))
        stop_while_drawing(trainer)
        assert trainer.run().received == signal.SIGTERM
        assert trainer.images_seen == 80
        assert_same(unbroken, run_here(config, broken))

    def test_truncated_newest_falls_back(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        config = tiny_config()
        unbroken = run_here(config, f"--run_dir={tmp_path / 'unbroken'}")
        broken = run_here(config, f"--run_dir={tmp_path / 'broken'}")
        weights = max((broken / "checkpoints").iterdir()) / "rank-00000.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        run_here(config, f"--run_dir={broken}")
        assert_same(unbroken, broken)

    def test_finished_run_is_left_alone(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        config = tiny_config()
        run = run_here(config)
        before = (run / "metrics.jsonl").read_bytes()
        run_here(config)
        assert (run / "metrics.jsonl").read_bytes() == before


class TestRefusals:
    """What cannot be continued is refused, with the difference."""

    def test_other_model(self, tiny_config: WriteConfig) -> None:
        config = tiny_config(train={"total_images": 16})
        run_here(config)
        with pytest.raises(RunError, match=r"(?s)model.depth: 1 -> 2.*schedule.type") as error:
            run_here(config, "--model.depth=2", "--schedule.type=rectified_flow", "--optim.lr=1")
        assert "optim.lr" not in str(error.value)

    def test_other_data(self, tiny_config: WriteConfig, tiny_shards: Path) -> None:
        config = tiny_config(train={"total_images": 16})
        run_here(config)
        with pytest.raises(CheckpointError, match="the run's data was"):
            run_here(config, f"--data.path={tiny_shards / 'validation'}")

    def test_folder_of_something_else(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "thesis.tex").write_text("")
        with pytest.raises(RunError, match="not empty and holds no run to resume"):
            run_here(tiny_config(), f"--run_dir={tmp_path / 'work'}")

    def test_lost_checkpoints(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        config = tiny_config(train={"total_images": 32})
        run = run_here(config)
        (run / "checkpoints").rename(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            run_here(config)

    def test_too_many_classes(self, tiny_config: WriteConfig) -> None:
        with pytest.raises(RunError, match=r"has 3 classes.*--model.num_classes=3"):
            run_here(tiny_config(model={"num_classes": 2}))

    def test_scales_that_do_not_fit(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="16 must be 6 times a power of two"):
            run_here(tiny_config(objective={"multiscale_from": 6}))
        assert not (tmp_path / "run").exists()

    def test_validation_set_of_other_classes(
        self, tiny_config: WriteConfig, tmp_path: Path, tiny_shards: Path
    ) -> None:
        other = tmp_path / "other"
        shutil.copytree(tiny_shards / "validation", other)
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["classes"] = manifest["classes"][::-1]
        (other / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RunError, match="does not have the classes of"):
            run_here(tiny_config(data={"validation_path": str(other)}))

    def test_synthetic_images(
        self, tiny_config: WriteConfig, tmp_path: Path, tiny_shards: Path
    ) -> None:
        """A third of the images: refused up to its exact share."""
        data = Path(shutil.copytree(tiny_shards, tmp_path / "data"))
        say_synthetic(data, Manifest.load(data).num_samples // 3)
        made, num = Manifest.load(data).synthetic, Manifest.load(data).num_samples
        config = tiny_config(data={"path": str(data)}, train={"total_images": 8})
        with pytest.raises(RunError, match=rf"data: {made} of {num} images .*max_synthetic is 0"):
            run_here(config)
        with pytest.raises(RunError, match=r"max_synthetic is 0\.3\b") as caught:
            run_here(config, "--data.max_synthetic=0.3")
        assert not (tmp_path / "run").exists()
        remedy = str(caught.value).rpartition("set ")[2]
        assert remedy == f"--data.max_synthetic={math.ceil(1000 * made / num) / 1000:g}"
        assemble(load_config(config, [remedy]))
        assemble(load_config(config, [f"--data.max_synthetic={made / num!r}"]))

    def test_a_yardstick_that_a_model_made(
        self, tiny_config: WriteConfig, tmp_path: Path, tiny_shards: Path
    ) -> None:
        held_out = Path(shutil.copytree(tiny_shards / "validation", tmp_path / "held out"))
        config = tiny_config(data={"validation_path": str(held_out)})
        assemble(load_config(config, [f"--run_dir={tmp_path / 'real'}"]))
        say_synthetic(held_out, 1)
        with pytest.raises(RunError, match=r"held out: 1 of its images .* must be real"):
            run_here(config, "--data.max_synthetic=1")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("share", ["-0.1", "1.1", "nan"])
    def test_shares_that_are_none(self, tiny_config: WriteConfig, share: str) -> None:
        with pytest.raises(ValueError, match=r"data\.max_synthetic must lie in \[0, 1\]"):
            run_here(tiny_config(), f"--data.max_synthetic={share}")

    def test_fewer_images_than_seen(self, tiny_config: WriteConfig) -> None:
        config = tiny_config(train={"total_images": 32})
        run_here(config)
        with pytest.raises(CheckpointError, match="has seen 32 images already"):
            run_here(config, "--train.total_images=16")


class TestSplitting:
    """The same images make the same step, however they are split."""

    def test_micro_batches_equal_the_whole(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        short = {"total_images": 80}
        whole = run_here(tiny_config(train=short), f"--run_dir={tmp_path / 'whole'}")
        # 3 does not divide 8: the last micro-batch is smaller, and must not count for more.
        split = run_here(
            tiny_config(train=short | {"micro_batch_size": 3}), f"--run_dir={tmp_path / 'split'}"
        )
        ours, theirs = (
            [line for line in metrics(run) if line["kind"] == "train"] for run in (whole, split)
        )
        assert len(ours) == len(theirs) == 4
        for one, other in zip(ours, theirs, strict=True):
            for name in ("images_seen", "lr", "loss", "grad_norm"):
                assert other[name] == pytest.approx(one[name], rel=1e-3), name
        weights, others = last_tensors(whole), last_tensors(split)
        assert all(
            torch.allclose(weights[n], others[n], atol=1e-4) for n in weights if "model" in n
        )

    def test_two_processes_equal_one(self, tiny_config: WriteConfig, tmp_path: Path) -> None:
        config = tiny_config(train={"total_images": 400}, checkpoint={"every_images": 400})
        one, two = tmp_path / "one", tmp_path / "two"
        assert train(config, f"--run_dir={one}").code == 0
        result = train(config, f"--run_dir={two}", processes=2)
        assert result.code == 0, result.output
        ours = [line for line in metrics(one) if line["kind"] == "train"]
        theirs = [line for line in metrics(two) if line["kind"] == "train"]
        assert len(ours) == len(theirs) == 17
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["lr"] == other["lr"]
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
        weights, others = last_tensors(one), last_tensors(two)
        for name in weights:
            scale = weights[name].abs().max().clamp(min=1e-6)
            if name.startswith(("model/", "ema_")):
                assert (weights[name] - others[name]).abs().max() / scale < 1e-3, name

    def test_other_number_of_processes_goes_on(
        self, tiny_config: WriteConfig, tmp_path: Path
    ) -> None:
        """Stopped in the middle of a log window, where the main process alone knows the sums."""
        config = tiny_config(checkpoint={"every_images": 40}, train={"total_images": 120})
        one, both = tmp_path / "one", tmp_path / "both"
        assert train(config, f"--run_dir={one}").code == 0
        trainer = assemble(load_config(config, [f"--run_dir={both}"]))
        stop_while_drawing(trainer)
        assert trainer.run().received == signal.SIGTERM
        assert trainer.images_seen == 80
        result = train(config, f"--run_dir={both}", processes=2)
        assert result.code == 0, result.output
        assert "processes: 1 -> 2" in result.output
        ours, theirs = (
            [line for line in metrics(run) if line["kind"] != "run"] for run in (one, both)
        )
        assert [line["images_seen"] for line in ours] == [line["images_seen"] for line in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            key = "loss" if mine["kind"] == "train" else "mean"
            assert mine[key] == pytest.approx(other[key], rel=1e-3)

    def test_signal_to_one_process_stops_all(
        self, tiny_config: WriteConfig, tmp_path: Path
    ) -> None:
        config = tiny_config(train={"total_images": 100_000}, log={"every_images": 8})
        process = subprocess.Popen(
            command(config, processes=2),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        run = tmp_path / "run"
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 5:
            assert process.poll() is None
            time.sleep(0.05)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.environ().get("RANK") == "1"
        ]
        workers[0].send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "stopped by SIGTERM at image" in output
        newest = max((run / "checkpoints").iterdir())
        assert f"at image {int(newest.name)}" in output

    def test_batch_must_divide(self, tiny_config: WriteConfig) -> None:
        result = train(tiny_config(train={"batch_size": 7}), processes=2)
        assert result.code != 0
        assert "train.batch_size 7 is not divisible by the 2 processes" in result.output
        assert "Traceback" not in result.output
