"""Drawing images with a network in training's own way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simple_diffusion.diffusion.few_step_sampler import StepRule, sampler_named
from simple_diffusion.diffusion.generate import generate
from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.prediction import Prediction
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.diffusion.spacing import Spacing


def in_precision(network: nn.Module, dtype: torch.dtype, device: torch.device) -> Network:
    """The network under autocast to `dtype` (float32: none), with float32 outputs."""

    def call(z: Tensor, logsnr: Tensor, *conditions: Tensor | None) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return network(z, logsnr, *conditions).float()

    return call


@dataclass(frozen=True)
class SampleSettings:
    """How images are drawn; see `config.SamplingConfig`."""

    sampler: str
    steps: int
    spacing: Spacing
    guidance: float
    guidance_interval: tuple[float, float]
    dtype: torch.dtype
    batch_size: int


@dataclass(frozen=True)
class Sampling:
    """Draws images with a network, in batches.

    Attributes:
        schedule: of the network's training.
        prediction: what the network predicts.
        shape: (C, H, W) of an image.
        null_label: the null class; None for an unconditional network.
        device: where the network is.
        settings: how to draw.
        steps: what the network was trained to do in few steps; None for a plain denoiser.
    """

    schedule: Schedule
    prediction: Prediction
    shape: tuple[int, int, int]
    null_label: int | None
    device: torch.device
    settings: SampleSettings
    steps: StepRule | None = None

    def images(
        self,
        network: nn.Module,
        indices: Sequence[int],
        labels: Tensor | None,
        *,
        seed: int,
        steps: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images number `indices` of the set `seed`: (len(indices), C, H, W) in [-1, 1].

        `labels` holds one label for each; `steps` replaces the settings' number.
        """
        given = self.settings
        drawn = []
        for start in range(0, len(indices), given.batch_size):
            stop = start + given.batch_size
            drawn.append(
                generate(
                    in_precision(network, given.dtype, self.device),
                    self.schedule,
                    self.prediction,
                    sampler_named(given.sampler, self.steps),
                    indices=indices[start:stop],
                    seed=seed,
                    shape=self.shape,
                    steps=given.steps if steps is None else steps,
                    device=self.device,
                    labels=None if labels is None else labels[start:stop],
                    null_label=self.null_label,
                    guidance=given.guidance if self.null_label is not None else 1.0,
                    guidance_interval=given.guidance_interval,
                    spacing=given.spacing,
                    on_step=on_step,
                )
            )
        return torch.cat(drawn) if drawn else torch.empty(0, *self.shape, device=self.device)
