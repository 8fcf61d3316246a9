"""Classifier-free guidance, and the denoiser that samplers call."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from simple_diffusion.diffusion.prediction import Prediction, convert
from simple_diffusion.diffusion.schedules import Schedule

# (z, logsnr, labels) -> prediction of the shape of z; few-step networks take a fourth, step sizes.
Network = Callable[..., Tensor]


class Denoiser(Protocol):
    """Estimates the clean image: (z, t, step) -> x0_hat.

    `t` is the time of z; `step` is the step size that few-step networks are told, and 0 asks for
    the plain denoised image. Both are the same for the whole batch.
    """

    def __call__(self, z: Tensor, t: float, step: float) -> Tensor: ...


def denoiser(
    network: Network,
    schedule: Schedule,
    prediction: Prediction,
    *,
    labels: Tensor | None = None,
    null_label: int | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (-math.inf, math.inf),
    clip: bool = True,
) -> Denoiser:
    """A denoiser with classifier-free guidance: x0 = x0_null + guidance · (x0_class - x0_null).

    Inside `interval` both branches run as one batch. Outside it, for guidance 1, and for steps that
    were trained with guidance in them (all but 0), only the conditional branch does. All
    predictions are affine in x0 with the same slope, so guiding x0 is guiding whatever the network
    predicts.
    Sources: Ho & Salimans 2021; Kynkäänniemi et al. 2024 for the interval.

    Args:
        network: called as network(z, logsnr, labels), logsnr of shape (B,); and with step sizes of
            shape (B,) as a fourth argument where they are not 0.
        schedule: the schedule that the network was trained on.
        prediction: what the network predicts.
        labels: class labels, int64, shape (B,); None for an unconditional network.
        null_label: the label that stands for "no class"; needed where guidance is not 1.
        guidance: 1 is the conditional model, 0 the unconditional one.
        interval: the λ, ends included, between which guidance applies.
        clip: clamp the estimate to the range of images, [-1, 1].

    Raises:
        ValueError: guidance without labels or null label, or an interval with low > high.
    """
    if guidance != 1.0 and (labels is None or null_label is None):
        raise ValueError(
            f"guidance={guidance} needs a class-conditional network, with labels and a null label; "
            "use guidance=1 for an unconditional one"
        )
    if interval[0] > interval[1]:
        raise ValueError(f"guidance interval {interval} must be (lowest λ, highest λ)")

    def estimate(z: Tensor, logsnr: float, labels: Tensor | None, step: float) -> Tensor:
        batch_logsnr = z.new_full((z.shape[0],), logsnr)
        told = (torch.full_like(batch_logsnr, step),) if step else ()
        return convert(network(z, batch_logsnr, labels, *told), z, batch_logsnr, prediction, "x0")

    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        logsnr = float(schedule(torch.tensor(t, dtype=torch.float64)))
        if guidance == 1.0 or step or not interval[0] <= logsnr <= interval[1]:
            x0 = estimate(z, logsnr, labels, step)
        else:
            assert labels is not None
            assert null_label is not None
            both = torch.cat([labels, torch.full_like(labels, null_label)])
            with_class, without = estimate(torch.cat([z, z]), logsnr, both, step).chunk(2)
            x0 = without + guidance * (with_class - without)
        return x0.clamp(-1.0, 1.0) if clip else x0

    return denoise
