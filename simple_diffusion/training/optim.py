"""AdamW over the groups that layers are tagged with, and a learning rate in images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups by the `optim_group` tag that each parameter got where its layer was made.

    Raises:
        ValueError: for a parameter without a known tag, which would silently miss its decay.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in network.named_parameters():
        tag = getattr(parameter, "optim_group", None)
        if tag not in groups:
            raise ValueError(f"parameter {name} has optim_group {tag!r}, not decay or no_decay")
        groups[tag].append(parameter)
    return [
        {"params": groups["decay"], "weight_decay": weight_decay},
        {"params": groups["no_decay"], "weight_decay": 0.0},
    ]


def adamw(
    network: nn.Module,
    *,
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """The fused AdamW; its rate is set before every step."""
    groups = parameter_groups(network, weight_decay)
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
