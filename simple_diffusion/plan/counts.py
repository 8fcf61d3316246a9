"""Parameters by part of the network, and FLOPs of an image, both counted and not estimated."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from simple_diffusion.config import RunConfig, build_network, build_objective
from simple_diffusion.diffusion.objectives import Batch, FewStep
from simple_diffusion.models.uvit import UViT

SEVERAL = 256  # images: divides into the shares and step sizes that are usual

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
    objective = build_objective(config)
    # What a few-step objective does depends on the image, so that it takes many for the mean.
    count = SEVERAL if isinstance(objective, FewStep) else 1
    batch = _batch(config, network, count)
    teacher = meta_network(config).requires_grad_(False)
    with torch.device("meta"), FlopCounterMode(display=False) as step:
        objective(network, batch, teacher).loss.sum().backward()
    return step.get_total_flops() // count


def count_teacher_calls(config: RunConfig) -> int:
    """How often a few-step objective calls its teacher for a micro-batch; 0 for denoising.

    As where the teacher's weights are cut up between processes: each calls it as often as others.
    """
    network = meta_network(config)
    teacher = _Counted(meta_network(config).requires_grad_(False))
    with torch.device("meta"), torch.no_grad():
        build_objective(config)(network, _batch(config, network, SEVERAL), teacher)
    return teacher.calls


class _Counted:
    """A teacher that counts its calls."""

    collective = True

    def __init__(self, network: UViT) -> None:
        self.network, self.calls = network, 0

    def __call__(self, z: Tensor, logsnr: Tensor, *conditions: Tensor | None) -> Tensor:
        self.calls += 1
        prediction: Tensor = self.network(z, logsnr, *conditions)
        return prediction


def even_choices(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`Batch.pick` and `Batch.place` of a step, spread evenly."""
    return (np.arange(count) + 0.5) / count, np.full(count, 0.5)


def _batch(config: RunConfig, network: UViT, count: int = 1) -> Batch:
    size = config.data.image_size
    with torch.device("meta"):
        image = torch.empty(count, network.in_channels, size, size)
        labels = torch.empty(count, dtype=torch.int64) if network.num_classes else None
        return Batch(image, image, torch.empty(count), labels, *even_choices(count))
