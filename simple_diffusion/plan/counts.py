"""Parameters by part of the network, and FLOPs of an image, both counted and not estimated."""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from simple_diffusion.config import RunConfig, build_network, build_objective
from simple_diffusion.diffusion.objectives import Batch
from simple_diffusion.models.uvit import UViT

# Children of the network and the part that a reader thinks of; the others have no parameters.
PARTS = {
    "embedding": "stem",
    "levels": "conv levels",
    "positions": "transformer",
    "transformer": "transformer",
    "conditioner": "conditioning",
    "head": "head",
}


def meta_network(config: RunConfig) -> UViT:
    """The network of a config, without content."""
    with torch.device("meta"):
        return build_network(config.model, config.data.image_size)


def count_parameters(config: RunConfig) -> dict[str, int]:
    """Number of parameters of each part of the network, in the order of the data's way."""
    counts = dict.fromkeys(PARTS.values(), 0)
    for name, parameter in meta_network(config).named_parameters():
        counts[PARTS[name.partition(".")[0]]] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def count_flops(config: RunConfig) -> tuple[int, int]:
    """FLOPs of one image forward through the network, and forward and backward in training.

    A multiply-add is 2. Matrix products and convolutions are counted, by torch's own counter;
    without content attention is written out as the two products that it is. What
    `parallel.recompute` makes the backward pass do again does not count: see `count_step`.
    """
    network = meta_network(config)
    batch = _batch(config, network)
    with torch.device("meta"), FlopCounterMode(display=False) as forward:
        network(batch.x0, batch.t, batch.labels)
    return forward.get_total_flops(), count_step(config, ())


def count_step(config: RunConfig, recompute: Sequence[int]) -> int:
    """FLOPs of one image in training, if these levels compute their activations twice.

    Raises:
        ValueError: the network has no such level.
    """
    network = meta_network(config)
    network.recompute(recompute)
    objective = build_objective(config.objective, config.schedule.build(config.data.image_size))
    batch = _batch(config, network)
    with torch.device("meta"), FlopCounterMode(display=False) as step:
        objective(network, batch).loss.sum().backward()
    return step.get_total_flops()


def _batch(config: RunConfig, network: UViT) -> Batch:
    size = config.data.image_size
    with torch.device("meta"):
        image = torch.empty(1, network.in_channels, size, size)
        labels = torch.empty(1, dtype=torch.int64) if network.num_classes else None
        return Batch(x0=image, eps=image, t=torch.empty(1), labels=labels)
