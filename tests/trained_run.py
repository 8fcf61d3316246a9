"""A run whose network says something, in seconds: random weights, then two steps of training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from simple_diffusion.config import RunConfig, build_network
from simple_diffusion.config_files import load_config
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.assemble import assemble
from simple_diffusion.training.trainer import Trainer

CONFIG: dict[str, Any] = {
    "data": {"image_size": 16, "workers": 0},
    "model": {
        "patch_size": 2,
        "channels": [16, 32],
        "depth": 1,
        "head_dim": 16,
        "num_classes": 4,  # one more than there are in the data
        "condition_width": 32,
        "dropout": 0.2,
    },
    "schedule": {"type": "interpolated", "base": {"type": "cosine"}, "low": 8, "high": 16},
    "optim": {"lr": 0.02},  # so that the averages differ from the weights
    "train": {"batch_size": 8, "total_images": 16, "precision": "fp32"},
    "checkpoint": {"every_images": 8},
    "validation": {"images": 0},
    "ema": {"lengths": [0.25, 0.05]},
    "sampling": {"steps": 6, "guidance": 2.0, "guidance_interval": [-4.0, 3.0], "batch_size": 4},
    "grids": {"num": 4, "steps": 2, "final_num": 9},
    "seed": 3,
}


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, and the trainer that made it."""

    path: Path
    config: RunConfig
    trainer: Trainer

    def network(self, weights: str | None = None) -> UViT:
        """A network of the trainer's weights: ``model``, or an average; None for the first."""
        state = self.trainer.state
        tensors = {"model": state.parameters, **state.averages()}[weights or state.ema.main]
        config = self.config
        network = build_network(config.model, config.data.image_size)
        network.load_state_dict(tensors)
        return network.eval().requires_grad_(False)

    def images(self, indices: list[int], labels: Tensor | None, **options: Any) -> Tensor:
        """What the trainer itself draws with its first average, in [-1, 1]."""
        return self.trainer.evaluator.sampling.images(self.network(), indices, labels, **options)


def train_run(shards: Path, run_dir: Path, **sections: dict[str, Any]) -> TrainedRun:
    """Train `CONFIG`, with the sections' keys instead, from random weights.

    An untrained network returns zero whatever it is told, so that nothing drawn with it, or with
    other weights, classes or guidance, would look wrong.
    """
    tree = {**CONFIG, **{name: {**CONFIG.get(name, {}), **keys} for name, keys in sections.items()}}
    tree["data"] = {**tree["data"], "path": str(shards)}
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**tree, "run_dir": str(run_dir)}))
    config = load_config(path)
    trainer = assemble(config)
    object.__setattr__(trainer.evaluator, "_report", lambda: None)  # it takes longer than the rest
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.state.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    trainer.run()
    return TrainedRun(run_dir, config, trainer)


def snapshot_run(shards: Path, run_dir: Path) -> dict[str, Tensor]:
    """Train a run that keeps snapshots of the averages of lengths 0.05 and 0.10, 64 of each.

    It tracked a third one too, of length 0.075, which its config then knows nothing of.

    Returns:
        That third average.
    """
    lengths = [0.05, 0.10, 0.075]
    run = train_run(
        shards,
        run_dir,
        ema={"lengths": lengths, "snapshot_images": 8},
        train={"total_images": 512},
        checkpoint={"every_images": 512},
        validation={"images": 16, "every_images": 512, "logsnr": [-4, 0, 4]},
        grids={"final_num": 1},
    )
    tracked = {name: t.clone() for name, t in run.trainer.state.ema.tensors("ema_0.075").items()}
    path = run_dir / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    assert tree["ema"]["lengths"] == lengths
    tree["ema"]["lengths"] = lengths[:2]
    path.write_text(yaml.safe_dump(tree))
    return tracked
