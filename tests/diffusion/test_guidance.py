"""Classifier-free guidance: what the network is asked, and how its answers are combined."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import denoiser
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction, convert, diffuse, target
from simple_diffusion.diffusion.schedules import Cosine, Shifted

SCHEDULE = Shifted(Cosine(), 128, 64)
LABELS = torch.tensor([2, 0, 1])
NULL = 3


@dataclass
class Recorder:
    """A network that answers by label, x0_hat = level[label] everywhere, and notes every call."""

    prediction: Prediction = "x0"
    levels: tuple[float, ...] = (-0.4, 0.1, 0.3, -0.1)  # the last is the null class
    calls: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)

    def __call__(self, z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        self.calls.append((z, logsnr, labels))
        assert labels is not None
        x0 = torch.tensor(self.levels, dtype=z.dtype)[labels].reshape(-1, 1, 1, 1).expand_as(z)
        return convert(x0, z, logsnr, "x0", self.prediction)


def noisy() -> Tensor:
    return torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def logsnr_at(t: float) -> float:
    return SCHEDULE(torch.tensor(t, dtype=torch.float64)).item()


def means(x0: Tensor) -> list[float]:
    result: list[float] = x0.mean(dim=(1, 2, 3)).tolist()
    return result


def test_guidance_one_is_the_conditional_model_in_one_call() -> None:
    network = Recorder()
    z = noisy()
    x0 = denoiser(network, SCHEDULE, "x0", labels=LABELS)(z, 0.6, 0.0)
    assert torch.equal(x0, network(z, torch.zeros(3), LABELS))
    seen, logsnr, labels = network.calls[0]
    assert len(network.calls) == 2  # one by the denoiser, one just above
    assert torch.equal(seen, z)
    assert logsnr.tolist() == [logsnr_at(0.6)] * 3
    assert labels is LABELS


def test_guidance_one_ignores_the_null_label_and_the_interval() -> None:
    network = Recorder()
    denoise = denoiser(
        network, SCHEDULE, "x0", labels=LABELS, null_label=NULL, interval=(-99.0, 99.0)
    )
    assert means(denoise(noisy(), 0.6, 0.0)) == pytest.approx([0.3, -0.4, 0.1])
    assert [call[0].shape[0] for call in network.calls] == [3]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (0.0, [-0.1, -0.1, -0.1]),  # the unconditional model
        (0.5, [0.1, -0.25, 0.0]),  # -.1 + .5 (.3 + .1), -.1 + .5 (-.4 + .1), -.1 + .5 (.1 + .1)
        (2.0, [0.7, -0.7, 0.3]),  # -.1 + 2 x .4, -.1 - 2 x .3, -.1 + 2 x .2
        (-1.0, [-0.5, 0.2, -0.3]),
    ],
)
def test_linear_formula_for_every_prediction(
    prediction: Prediction, guidance: float, expected: list[float]
) -> None:
    denoise = denoiser(
        Recorder(prediction),
        SCHEDULE,
        prediction,
        labels=LABELS,
        null_label=NULL,
        guidance=guidance,
    )
    x0 = denoise(noisy(), 0.6, 0.0)
    assert means(x0) == pytest.approx(expected, abs=1e-12)
    assert x0.std(dim=(1, 2, 3)).max() < 1e-12


def test_both_branches_run_as_one_batch() -> None:
    network = Recorder()
    z = noisy()
    denoise = denoiser(network, SCHEDULE, "x0", labels=LABELS, null_label=NULL, guidance=3.0)
    denoise(z, 0.3, 0.0)
    ((seen, logsnr, labels),) = network.calls
    assert torch.equal(seen, torch.cat([z, z]))
    assert logsnr.tolist() == [logsnr_at(0.3)] * 6
    assert labels is not None
    assert labels.tolist() == [2, 0, 1, NULL, NULL, NULL]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("low", "high", "inside"),
    [
        (0.0, 0.0, True),  # offsets from λ, in units of its last place: both edges belong to it
        (0.0, 9e9, True),
        (-9e9, 0.0, True),
        (1.0, 9e9, False),
        (-9e9, -1.0, False),
        (-1.0, 1.0, True),
    ],
)
def test_interval_to_the_last_place(low: float, high: float, inside: bool) -> None:
    t = 0.45
    logsnr = logsnr_at(t)
    network = Recorder()
    denoise = denoiser(
        network,
        SCHEDULE,
        "x0",
        labels=LABELS,
        null_label=NULL,
        guidance=2.0,
        interval=(logsnr + low * math.ulp(logsnr), logsnr + high * math.ulp(logsnr)),
    )
    guided, conditional = [0.7, -0.7, 0.3], [0.3, -0.4, 0.1]
    assert means(denoise(noisy(), t, 0.0)) == pytest.approx(guided if inside else conditional)
    # outside, the unconditional branch is not only unused but not computed
    assert [call[0].shape[0] for call in network.calls] == [6 if inside else 3]


def test_guidance_zero_outside_the_interval_is_conditional() -> None:
    network = Recorder()
    denoise = denoiser(
        network,
        SCHEDULE,
        "x0",
        labels=LABELS,
        null_label=NULL,
        guidance=0.0,
        interval=(-3.0, -2.0),
    )
    assert means(denoise(noisy(), 0.1, 0.0)) == pytest.approx([0.3, -0.4, 0.1])


def test_clip_comes_after_guidance() -> None:
    wide = Recorder(levels=(-0.4, 0.1, 1.3, 0.9))
    arguments = {"labels": LABELS, "null_label": NULL, "guidance": 2.0}
    # class 2: .9 + 2 (1.3 - .9) = 1.7; clipping the branches first would give .9 + 2 x .1 = 1.1
    # class 0: .9 + 2 (-.4 - .9) = -1.7, class 1: .9 + 2 (.1 - .9) = -.7
    raw = denoiser(wide, SCHEDULE, "x0", clip=False, **arguments)  # type: ignore[arg-type]
    assert means(raw(noisy(), 0.5, 0.0)) == pytest.approx([1.7, -1.7, -0.7])
    clipped = denoiser(wide, SCHEDULE, "x0", **arguments)  # type: ignore[arg-type]
    assert means(clipped(noisy(), 0.5, 0.0)) == pytest.approx([1.0, -1.0, -0.7])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_unconditional_network_that_is_right_recovers_the_image(prediction: Prediction) -> None:
    x0, eps = noisy().clamp(-1.0, 1.0), noisy().flip(0)
    level = torch.full((3,), logsnr_at(0.7), dtype=torch.float64)
    z = diffuse(x0, eps, level)

    def network(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is None
        return target(prediction, x0, eps, logsnr)

    estimate = denoiser(network, SCHEDULE, prediction)(z, 0.7, 0.0)
    torch.testing.assert_close(estimate, x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize(("labels", "null"), [(None, None), (None, NULL), (LABELS, None)])
def test_guidance_without_classes_is_refused(
    guidance: float, labels: Tensor | None, null: int | None
) -> None:
    with pytest.raises(ValueError, match=rf"guidance={guidance} needs a class-conditional"):
        denoiser(Recorder(), SCHEDULE, "x0", labels=labels, null_label=null, guidance=guidance)


def test_interval_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ValueError, match=r"interval \(2\.0, -2\.0\) must be"):
        denoiser(Recorder(), SCHEDULE, "x0", labels=LABELS, interval=(2.0, -2.0))
