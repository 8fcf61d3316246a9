"""Small runs to plan."""

from dataclasses import replace
from typing import Any

from simple_diffusion.config import ModelConfig, RunConfig

VIT = ModelConfig(
    patch_size=4,
    channels=(32,),
    blocks=(),
    depth=2,
    head_dim=16,
    num_classes=5,
    condition_width=24,
)
CONV = replace(VIT, patch_size=2, channels=(8, 16), blocks=(1,), depth=1)


def small_run(model: ModelConfig = CONV, size: int = 16, **sections: dict[str, Any]) -> RunConfig:
    """A run at `size` pixels; sections are keys to replace, such as train={"batch_size": 8}."""
    config = RunConfig(model=model)
    sections = {"data": {}, "train": {"batch_size": 8}, **sections}
    sections["data"] = {"image_size": size, **sections["data"]}
    changed = {name: replace(getattr(config, name), **keys) for name, keys in sections.items()}
    return replace(config, **changed)
