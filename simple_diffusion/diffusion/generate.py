"""Drawing a set of images: image i depends on (seed, i) alone, not on batches or processes."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import Network, denoiser
from simple_diffusion.diffusion.prediction import Prediction
from simple_diffusion.diffusion.randomness import generators, normals
from simple_diffusion.diffusion.samplers import Sampler
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.spacing import Spacing


@torch.no_grad()
def generate(
    network: Network,
    schedule: Schedule,
    prediction: Prediction,
    sampler: Sampler,
    *,
    indices: Sequence[int],
    seed: int,
    shape: tuple[int, int, int],
    steps: int,
    device: torch.device,
    labels: Tensor | None = None,
    null_label: int | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] = (-math.inf, math.inf),
    spacing: Spacing = "logsnr",
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """One batch of images.

    Args:
        network: called as network(z, logsnr, labels).
        schedule: the schedule of its training.
        prediction: what it predicts.
        sampler: one of `samplers.SAMPLERS`.
        indices: which images of the set to draw; fixes each one's noise together with `seed`.
        seed: names the set.
        shape: (C, H, W).
        steps: sampling steps.
        device: where the network is.
        labels: int64, one for each index; None for an unconditional network.
        null_label: see `guidance.denoiser`, as are `guidance` and `guidance_interval`.
        spacing: see `samplers.Sampler`, as is `on_step`.

    Returns:
        Images in [-1, 1], shape (len(indices), C, H, W), float32, on `device`.
    """
    each = generators(seed, "sample", list(indices), device)
    noise = normals(each, shape)
    denoise = denoiser(
        network,
        schedule,
        prediction,
        labels=None if labels is None else labels.to(device),
        null_label=null_label,
        guidance=guidance,
        interval=guidance_interval,
    )
    return sampler(
        denoise, noise, schedule, steps, spacing=spacing, generators=each, on_step=on_step
    )


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded; any shape."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0.0, 255.0).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """0..255 to [-1, 1], float32; any shape."""
    return images.float() / 127.5 - 1.0
