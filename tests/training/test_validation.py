"""Validation loss against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from data_pipelines.dataset import Batch
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction, convert
from simple_diffusion.training.signals import StopRequested
from simple_diffusion.training.validation import validation_mse

LOGSNR = (-6.0, 0.0, 6.0)


def batches(count: int, size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels, positions = torch.zeros(count, dtype=torch.long), torch.arange(count)
    pieces = zip(images.split(size), labels.split(size), positions.split(size), strict=True)
    return [
        Batch(i, lab, p, torch.zeros_like(p), [""] * len(p), [""] * len(p)) for i, lab, p in pieces
    ]


def never() -> None:
    """No stop was asked for."""


def measure(network: object, prediction: Prediction, data: list[Batch]) -> list[float]:
    sums = validation_mse(
        network,  # type: ignore[arg-type]
        data,
        prediction=prediction,
        logsnr=LOGSNR,
        seed=3,
        null_label=None,
        device=torch.device("cpu"),
        check_stop=never,
    )
    return (sums[:-1] / sums[-1]).tolist()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_grey_denoiser_has_the_closed_form_loss(prediction: Prediction) -> None:
    """x0_hat = 0 gives eps_hat = z/σ, so the eps error is (α/σ) x0 and its MSE e^λ·mean(x0²)."""

    def grey(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        return convert(torch.zeros_like(z), z, logsnr, "x0", prediction)

    data = batches(12, 12)
    power = (data[0].images.double() / 127.5 - 1.0).square().mean().item()
    expected = [math.exp(level) * power for level in LOGSNR]
    assert measure(grey, prediction, data) == pytest.approx(expected, rel=1e-4)


def test_result_does_not_depend_on_batches() -> None:
    def network(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        return 0.3 * z

    whole, pieces = measure(network, "v", batches(12, 12)), measure(network, "v", batches(12, 5))
    assert whole == pytest.approx(pieces, rel=1e-6)


def test_stop_is_noticed_inside() -> None:
    def stop() -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        validation_mse(
            lambda z, logsnr, labels: z,
            batches(4, 4),
            prediction="v",
            logsnr=LOGSNR,
            seed=0,
            null_label=None,
            device=torch.device("cpu"),
            check_stop=stop,
        )
