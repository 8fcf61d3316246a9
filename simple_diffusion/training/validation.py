"""Validation loss: unweighted, single-scale eps-MSE at fixed λ, the same for every recipe."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from data_pipelines.dataset import Batch
from simple_diffusion.diffusion.generate import from_uint8
from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import match_dims
from simple_diffusion.diffusion.prediction import Prediction, diffuse, error_factor, target
from simple_diffusion.diffusion.randomness import generators, normals


@torch.no_grad()
def validation_mse(
    network: Network,
    batches: Iterable[Batch],
    *,
    prediction: Prediction,
    logsnr: Sequence[float],
    seed: int,
    null_label: int | None,
    device: torch.device,
    check_stop: Callable[[], None],
) -> Tensor:
    """Sums for the eps-MSE at each λ over these images; the noise of an image is always the same.

    Args:
        network: called as network(z, logsnr, labels).
        batches: held-out images with their labels and positions.
        prediction: what the network predicts; its error is moved to eps by a factor of λ.
        logsnr: the λ to measure at.
        seed: the run's seed.
        null_label: label for images without class; None for an unconditional network.
        device: where the network is.
        check_stop: called between network calls; raises to abandon the measurement.

    Returns:
        float64, shape (len(logsnr) + 1,): the sum of per-image MSEs at each λ, then the number of
        images, ready to be summed over processes.
    """
    totals = torch.zeros(len(logsnr) + 1, dtype=torch.float64, device=device)
    for batch in batches:
        x0 = from_uint8(batch.images.to(device))
        eps = normals(generators(seed, "validation", batch.positions, device), x0.shape[1:])
        labels = None
        if null_label is not None:
            labels = torch.where(batch.labels < 0, null_label, batch.labels).to(device)
        for number, level in enumerate(logsnr):
            check_stop()
            lam = x0.new_full((x0.shape[0],), level)
            output = network(diffuse(x0, eps, lam), lam, labels).float()
            error = output - target(prediction, x0, eps, lam)
            error = error * match_dims(error_factor(lam, prediction, "eps"), error)
            totals[number] += error.double().square().mean(dim=(1, 2, 3)).sum()
        totals[-1] += x0.shape[0]
    return totals
