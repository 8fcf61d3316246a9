"""Runs with few-step objectives: the same on two processes, sharded, and after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.runs import last_tensors, metrics
from tests.training.test_many_processes import FSDP2, assert_alike, run, succeeded

pytestmark = pytest.mark.integration
WriteConfig = Callable[..., Path]
KINDS: dict[str, dict[str, Any]] = {
    "shortcut": {"type": "shortcut", "target_length": 0.1, "guidance": 2.0},
    "discrete_consistency": {"type": "discrete_consistency", "weight": 0.1},
    "consistency": {"type": "consistency", "warmup_images": 40},
    "meanflow": {"type": "meanflow", "guidance": 2.0},
}

# The teacher's weights are pieces: of an average, or its own, which are differentiated forward.
SHARDED = ("shortcut", "consistency")


@pytest.fixture
def write(tiny_config: WriteConfig) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        few_step = {"share": 0.5, "base_steps": 32, "spacing": "tau", **KINDS[kind]}
        return tiny_config(
            model={"step_condition": True},
            few_step=few_step,
            ema={"lengths": [0.05, 0.1]},
            train={"total_images": 64},
            checkpoint={"every_images": 32},
            validation={"every_images": 32},
            log={"every_images": 16},
            sampling={
                "sampler": "few_step",
                "steps": 2,
                "spacing": "tau",
                "guidance": few_step.get("guidance", 1.0),
            },
        )

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_split_sharded_and_killed(kind: str, write: Callable[[str], Path], tmp_path: Path) -> None:
    config = write(kind)
    alone, split, killed = (tmp_path / name for name in ("alone", "split", "killed"))
    succeeded(run(config, alone, processes=1))
    lines = [line for line in metrics(alone) if line["kind"] == "train"]
    assert all(line["loss/few_step_mse"] > 0 and line["loss/eps_mse"] > 0 for line in lines)
    succeeded(run(config, split, "--train.micro_batch_size=3", processes=2))
    assert_alike(alone, split)
    if kind in SHARDED:
        sharded = tmp_path / "sharded"
        succeeded(run(config, sharded, FSDP2, processes=2))
        assert_alike(alone, sharded)
    (ended,) = run(config, killed, processes=1, kill=[0, 40])
    assert ended.code == -9
    succeeded(run(config, killed, processes=1))
    mine, theirs = last_tensors(alone), last_tensors(killed)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert metrics(alone) == metrics(killed)
