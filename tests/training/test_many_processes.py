"""Runs on several processes: the same as on one, however they are split, skipped or lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from simple_diffusion.models.uvit import UViT
from simple_diffusion.training import run_folder
from simple_diffusion.training.parallel import check_launch
from simple_diffusion.training.signals import EXIT_REQUEUE
from simple_diffusion.training.state import find_checkpoint
from simple_diffusion.training.weights import WholeNetwork
from tests.training.runs import Ended, last_tensors, launch, metrics

pytestmark = pytest.mark.integration
WriteConfig = Callable[..., Path]
FSDP2 = "--parallel.strategy=fsdp2"


def steps_of(log: Path) -> list[dict[str, Any]]:
    """What the processes took down of each step, put together; the last run of a step counts."""
    steps: dict[int, dict[int, Any]] = {}
    for path in sorted(log.glob("*.jsonl"), key=lambda path: int(path.stem)):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            steps.setdefault(line["images_seen"], {})[int(path.stem)] = line
    return [
        {
            "images_seen": start,
            "positions": [p for one in ranks.values() for p in one["positions"]],
            "keys": [key for one in ranks.values() for key in one["keys"]],
            "lr": {one["lr"] for one in ranks.values()},
            "changed": [one["changed"] for one in ranks.values()],
            "gradients": any(one["gradients"] for one in ranks.values()),
        }
        for start, ranks in sorted(steps.items())
    ]


def run(config: Path, folder: Path, *overrides: str, processes: int, **driven: Any) -> list[Ended]:
    return launch(
        config,
        f"--run_dir={folder}",
        *overrides,
        processes=processes,
        driven={"log": str(folder.with_suffix(".steps")), **driven},
    )


def succeeded(ended: list[Ended]) -> None:
    assert [one.code for one in ended] == [0] * len(ended), "\n".join(one.output for one in ended)


def assert_alike(one: Path, other: Path) -> None:
    """Ids and rates exactly; losses, gradients, weights and averages to float tolerance."""
    mine, theirs = (steps_of(run.with_suffix(".steps")) for run in (one, other))
    for key in ("images_seen", "positions", "keys", "lr"):
        assert [step[key] for step in mine] == [step[key] for step in theirs], key
    ours, others = (
        [line for line in metrics(run) if line["kind"] in ("train", "validation")]
        for run in (one, other)
    )
    assert len(ours) == len(others) > 5
    for line, same in zip(ours, others, strict=True):
        assert line["images_seen"] == same["images_seen"]
        for key in ("loss", "grad_norm", "mean"):
            if key in line:
                assert line[key] == pytest.approx(same[key], rel=1e-3), line
    weights, same_weights = last_tensors(one), last_tensors(other)
    assert weights.keys() == same_weights.keys()
    for name in weights:
        if name.startswith(("model/", "ema_")):
            scale = weights[name].abs().max().clamp(min=1e-6)
            assert (weights[name] - same_weights[name]).abs().max() / scale < 2e-3, name


@pytest.fixture(scope="module")
def lone_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """One process, no accumulation: what all others are compared with; run once."""
    folder = tmp_path_factory.mktemp("lone") / "run"

    def make(config: Path) -> Path:
        if not folder.exists():
            succeeded(run(config, folder, processes=1))
        return folder

    return make


@pytest.fixture
def config(tiny_config: WriteConfig) -> Path:
    return tiny_config(
        checkpoint={"every_images": 80},
        ema={"lengths": [0.1, 0.05]},
        log={"every_images": 16},
    )


class TestTheSameRun:
    @pytest.mark.parametrize(
        ("processes", "overrides"),
        [
            (1, ["--train.micro_batch_size=2"]),
            (2, ["--train.micro_batch_size=3"]),  # the last micro-batch is a smaller one
            (4, []),
            (2, [FSDP2]),
            (4, [FSDP2, "--parallel.shards=2", "--train.micro_batch_size=1"]),
            (2, [FSDP2, "--parallel.recompute=[0,1]"]),
        ],
    )
    def test_however_it_is_split(
        self,
        config: Path,
        lone_run: Callable[[Path], Path],
        tmp_path: Path,
        processes: int,
        overrides: list[str],
    ) -> None:
        alone, split = lone_run(config), tmp_path / "split"
        succeeded(run(config, split, *overrides, processes=processes))
        assert_alike(alone, split)

    def test_resumed_on_others_otherwise(
        self, config: Path, lone_run: Callable[[Path], Path], tmp_path: Path
    ) -> None:
        """Two sharded, then four copies, then one; told to stop while they draw or validate."""
        alone, moved = lone_run(config), tmp_path / "moved"
        ended = run(config, moved, FSDP2, processes=2, term=[1, "validate"])
        assert [one.code for one in ended] == [EXIT_REQUEUE] * 2, ended
        assert "stopped by SIGTERM at image 80, saved" in ended[0].output
        ended = run(config, moved, processes=4, term=[2, "draw_final"])
        assert [one.code for one in ended] == [EXIT_REQUEUE] * 4, ended
        assert "processes: 2 -> 4" in ended[0].output
        assert "stopped by SIGTERM at image 160, saved" in ended[0].output
        succeeded(run(config, moved, processes=1))
        assert_alike(alone, moved)


class TestNotFinite:
    @pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
    def test_a_step_is_skipped_everywhere(
        self, config: Path, tmp_path: Path, strategy: str
    ) -> None:
        """Rank 1's first loss is NaN for two steps: nobody's weights, averages or moments move."""
        folder, log = tmp_path / "run", tmp_path / "run.steps"
        overrides = [f"--parallel.strategy={strategy}", "--train.micro_batch_size=2"]
        succeeded(run(config, folder, *overrides, processes=2, nan=[1, 48, 56]))
        steps = steps_of(log)
        assert [step["images_seen"] for step in steps] == list(range(0, 160, 8))
        for step in steps:
            skipped = step["images_seen"] in (48, 56)
            assert step["changed"] == [not skipped] * 2, step["images_seen"]
            assert not step["gradients"]
        notes = [line for line in metrics(folder) if line["kind"] == "skipped"]
        assert [note["images_seen"] for note in notes] == [56, 64]
        for note, step in zip(notes, steps[6:8], strict=True):
            # the first of each of the two micro-batches of rank 1, whose share is the second half
            assert [one["key"] for one in note["samples"]] == step["keys"][4:8:2]
            assert [one["position"] for one in note["samples"]] == step["positions"][4:8:2]
        lines = [line for line in metrics(folder) if line["kind"] == "train"]
        assert [line["skipped"] for line in lines] == [0, 0, 0, 2, 2, 2, 2, 2, 2, 2]
        assert all(line["loss"] is not None for line in lines)
        assert lines[-1]["images_seen"] == 160
        assert all(t.isfinite().all() for t in last_tensors(folder).values())

    def test_too_many_in_a_row_stop(self, config: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        ended = run(config, folder, "--health.max_skipped=3", processes=2, nan=[1, 96, 160])
        assert [one.code for one in ended] == [2, 2], ended
        assert "not finite in 3 steps in a row, by image 120" in ended[0].output
        assert "The newest checkpoint is" in ended[0].output
        assert "000000000080" in ended[0].output
        assert "Traceback" not in ended[0].output
        kept = find_checkpoint(folder / "checkpoints")
        assert kept.state["images_seen"] == 80
        assert all(t.isfinite().all() for g in kept.groups() for t in kept.tensors(g).values())
        told = [line["images_seen"] for line in metrics(folder) if line["kind"] == "skipped"]
        assert told == [104, 112, 120]


class TestLostProcess:
    @pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
    def test_the_others_end_and_name_it(self, config: Path, tmp_path: Path, strategy: str) -> None:
        folder = tmp_path / "run"
        chosen = f"--parallel.strategy={strategy}"
        first, second = run(config, folder, chosen, processes=2, kill=[1, 96])
        assert second.code == -9
        assert first.code == EXIT_REQUEUE, first.output
        assert "rank 1" in first.output
        assert "000000000080" in first.output
        succeeded(run(config, folder, chosen, processes=2))
        assert [step["images_seen"] for step in steps_of(tmp_path / "run.steps")] == list(
            range(0, 160, 8)
        )

    def test_one_that_hangs_is_named(self, config: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        first, second = run(config, folder, "--health.stall_seconds=8", processes=2, hang=[1, 96])
        assert (first.code, second.code) == (EXIT_REQUEUE, EXIT_REQUEUE)
        assert "rank 1" in first.output
        assert "in data at image 96" in first.output
        succeeded(run(config, folder, processes=2))


class TestLaunches:
    @pytest.mark.parametrize(
        ("environment", "said"),
        [
            ({"SLURM_STEP_NUM_TASKS": "2"}, "srun started 2 processes, but none knows"),
            ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4"),
            (
                {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},
                "accelerate launch was asked for several processes and started one",
            ),
        ],
    )
    def test_processes_that_do_not_see_each_other(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
    ) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(run_folder.RunError, match=said):
            check_launch(1)
        monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun, one process for each srun task
        check_launch(1)

    def test_two_commands_in_one_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when a launcher starts two that do not know of each other."""
        monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
        with run_folder.hold_run_folder(tmp_path):
            second = run_folder.hold_run_folder(tmp_path)
            with pytest.raises(run_folder.RunError, match="another process trains"):
                second.__enter__()
        with run_folder.hold_run_folder(tmp_path):
            pass

    def test_sharding_for_one(self, config: Path) -> None:
        (ended,) = launch(config, FSDP2, processes=1)
        assert ended.code == 2
        assert "there is one; launch several with torchrun" in ended.output
        assert "Traceback" not in ended.output


def test_weights_are_lent_without_a_copy() -> None:
    network = UViT(image_size=8, channels=[8], blocks=[], depth=1, head_dim=8, condition_width=8)
    whole = WholeNetwork(network)
    parameters = dict(network.named_parameters())
    with whole.lent(parameters) as lent:
        assert not lent.training
        for name, parameter in lent.named_parameters():
            assert parameter.data_ptr() == parameters[name].data_ptr()
            assert not parameter.requires_grad
    assert all(p.is_meta for p in lent.parameters())
    assert network.training
    assert all(p.requires_grad and not p.is_meta for p in network.parameters())
    assert torch.is_grad_enabled()
