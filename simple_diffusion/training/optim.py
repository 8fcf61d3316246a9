"""AdamW over the groups that layers are tagged with, and a learning rate in images."""

from collections.abc import Sequence

import torch
from torch import nn

from simple_diffusion.models.layers import optim_groups


def adamw(
    network: nn.Module,
    *,
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """The fused AdamW over the groups that the network's layers are tagged with.

    `lr` is where it starts; `set_learning_rate` changes it before every step.
    """
    by_tag = optim_groups(network)
    groups = [
        {"params": by_tag["decay"], "weight_decay": weight_decay},
        {"params": by_tag["no_decay"], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


def learning_rate(
    images: int, *, peak: float, warmup_images: int, decay_images: int, total_images: int
) -> float:
    """The rate of the step that ends at `images` seen: linear up, flat, linear down to 0.

    A function of images alone, so the same on any number of processes and after a resume.
    """
    rise = min(1.0, images / warmup_images) if warmup_images else 1.0
    fall = min(1.0, max(0.0, (total_images - images) / decay_images)) if decay_images else 1.0
    return peak * min(rise, fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
