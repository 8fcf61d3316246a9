"""A run whose network says something, in seconds: random weights, then two steps of training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from simple_diffusion.config_files import load_config
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
    trainer: Trainer

    def images(self, indices: list[int], labels: Tensor | None, **options: Any) -> Tensor:
        """What the trainer itself draws with its first average, in [-1, 1]."""
        network = self.trainer.ema.networks[self.trainer.ema.main].eval()
        return self.trainer.evaluator.sampling.images(network, indices, labels, **options)


def train_run(shards: Path, run_dir: Path, **sections: dict[str, Any]) -> TrainedRun:
    """Train `CONFIG`, with the sections' keys instead, from random weights.

    An untrained network returns zero whatever it is told, so that nothing drawn with it, or with
    other weights, classes or guidance, would look wrong.
    """
    tree = {**CONFIG, **{name: {**CONFIG[name], **keys} for name, keys in sections.items()}}
    tree["data"] = {**tree["data"], "path": str(shards)}
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**tree, "run_dir": str(run_dir)}))
    trainer = assemble(load_config(path))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    trainer.run()
    return TrainedRun(run_dir, trainer)
