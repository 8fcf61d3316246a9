"""The denoising objective against a scalar float64 reference, pixel by pixel."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.objectives import Batch, Denoising
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction, target
from simple_diffusion.diffusion.schedules import Cosine, RectifiedFlow, Shifted
from simple_diffusion.diffusion.timesteps import LogitNormal, TimeDistribution, UniformTime
from simple_diffusion.diffusion.weighting import MinSNR, Sigmoid, Uniform, Weighting

PAIRS = list(product(PREDICTIONS, PREDICTIONS))
COSINE_ANGLE = 0.5 * math.pi - 2.0 * math.atan(math.exp(-7.5))
TIMES = [0.05, 0.4, 0.5, 0.93]
SIDE, SMALLEST = 8, 2


def batch(dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * 2.0 - 1.0
    eps = torch.randn(4, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    t = torch.tensor(TIMES, dtype=torch.float64)
    return Batch(x0.to(dtype), eps.to(dtype), t.to(dtype), torch.tensor([0, 3, 1, 2]))


def network(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
    """Wrong in a way that depends on all it is told."""
    assert labels is not None
    offset = (0.1 * torch.tanh(logsnr / 4.0) + 0.05 * labels.to(z.dtype)).reshape(-1, 1, 1, 1)
    return 0.3 * z + offset


# --- the reference: one float at a time, errors by converting and subtracting


def schedule_and_slope(t: float) -> tuple[float, float]:
    """λ and dλ/dt of the cosine at ±15, shifted from 64 to 128."""
    angle = COSINE_ANGLE * t + math.atan(math.exp(-7.5))
    return -2.0 * math.log(math.tan(angle)) - 2.0 * math.log(2.0), -4.0 * COSINE_ANGLE / math.sin(
        2.0 * angle
    )


def as_x0_and_eps(
    output: float, z: float, a: float, s: float, kind: Prediction
) -> dict[str, float]:
    """The clean pixel and the noise that an output implies."""
    if kind == "eps":
        return {"x0": (z - s * output) / a, "eps": output}
    if kind == "x0":
        return {"x0": output, "eps": (z - a * output) / s}
    if kind == "v":
        return {"x0": a * z - s * output, "eps": s * z + a * output}
    return {"x0": (z - s * output) / (a + s), "eps": (z + a * output) / (a + s)}


def measured(values: dict[str, float], a: float, s: float, loss: Prediction) -> float:
    x0, eps = values["x0"], values["eps"]
    return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "u": eps - x0}[loss]


def reference_weight(weighting: Weighting, level: float, loss: Prediction) -> float:
    if isinstance(weighting, Uniform):
        return 1.0
    if isinstance(weighting, Sigmoid):
        on_x0 = math.exp(level) / (1.0 + math.exp(level - weighting.bias))
    else:
        assert isinstance(weighting, MinSNR)
        on_x0 = min(math.exp(level), weighting.gamma)
    squared_factor = {
        "eps": math.exp(level),
        "v": 1.0 + math.exp(level),
        "u": (1.0 + math.exp(level / 2.0)) ** 2,
        "x0": 1.0,
    }
    return on_x0 / squared_factor[loss]


def reference_density(times: TimeDistribution, t: float) -> float:
    if isinstance(times, UniformTime):
        return 1.0
    assert isinstance(times, LogitNormal)
    score = (math.log(t / (1.0 - t)) - times.mean) / times.std
    return math.exp(-(score**2) / 2.0) / (times.std * math.sqrt(2.0 * math.pi)) / (t * (1.0 - t))


def pooled_mean_square(plane: list[list[float]], factor: int) -> float:
    blocks = [
        sum(plane[factor * i + k][factor * j + m] for k in range(factor) for m in range(factor))
        for i in range(SIDE // factor)
        for j in range(SIDE // factor)
    ]
    return math.fsum((total / factor**2) ** 2 for total in blocks) / len(blocks)


def reference_losses(objective: Denoising, data: Batch) -> tuple[list[float], list[float]]:
    """(loss, single-scale mean square) of every image."""
    assert data.labels is not None
    losses, squares = [], []
    for x0, eps, t, label in zip(
        data.x0.tolist(), data.eps.tolist(), data.t.tolist(), data.labels.tolist(), strict=True
    ):
        level, slope = schedule_and_slope(t)
        a, s = 1.0 / math.sqrt(1.0 + math.exp(-level)), 1.0 / math.sqrt(1.0 + math.exp(level))
        planes = []
        for channel_x0, channel_eps in zip(x0, eps, strict=True):
            plane = []
            for row_x0, row_eps in zip(channel_x0, channel_eps, strict=True):
                row = []
                for x, e in zip(row_x0, row_eps, strict=True):
                    z = a * x + s * e
                    output = 0.3 * z + 0.1 * math.tanh(level / 4.0) + 0.05 * label
                    implied = as_x0_and_eps(output, z, a, s, objective.prediction)
                    true = measured({"x0": x, "eps": e}, a, s, objective.loss)
                    row.append(measured(implied, a, s, objective.loss) - true)
                plane.append(row)
            planes.append(plane)
        sizes = [SIDE] if objective.multiscale_from is None else [2, 4, 8]
        by_size = {
            size: sum(pooled_mean_square(plane, SIDE // size) for plane in planes) / len(planes)
            for size in sizes
        }
        weight = reference_weight(objective.weighting, level, objective.loss)
        if objective.correct_density:
            weight *= -slope / reference_density(objective.times, t)
        losses.append(weight * sum(SIDE / size * by_size[size] for size in sizes))
        squares.append(by_size[SIDE])
    return losses, squares


@pytest.mark.parametrize(("prediction", "loss"), PAIRS)
@pytest.mark.parametrize("weighting", [Uniform(), Sigmoid(-1.0), MinSNR(2.0)], ids=str)
@pytest.mark.parametrize(
    ("multiscale", "density", "times"),
    [
        (None, False, UniformTime()),
        (SMALLEST, False, UniformTime()),
        (None, True, UniformTime()),
        (SMALLEST, True, LogitNormal(-0.5, 1.2)),
    ],
    ids=["plain", "multiscale", "density", "all"],
)
def test_equals_the_scalar_reference(
    prediction: Prediction,
    loss: Prediction,
    weighting: Weighting,
    multiscale: int | None,
    density: bool,
    times: TimeDistribution,
) -> None:
    schedule = Shifted(Cosine(), 128, 64)
    objective = Denoising(schedule, prediction, loss, weighting, times, multiscale, density)
    losses = objective(network, batch())
    expected, squares = reference_losses(objective, batch())
    assert losses.loss.tolist() == pytest.approx(expected, rel=1e-9, abs=0.0)
    assert {name: term.tolist() for name, term in losses.terms.items()} == {
        f"{loss}_mse": pytest.approx(squares, rel=1e-9, abs=0.0)
    }


@pytest.mark.parametrize("weighting", [Sigmoid(-3.0), Sigmoid(1.0), MinSNR()], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("multiscale", [None, SMALLEST])
def test_the_loss_space_does_not_matter_to_a_weighting_of_snr(
    weighting: Weighting, prediction: Prediction, multiscale: int | None
) -> None:
    schedule = RectifiedFlow()
    values = [
        Denoising(schedule, prediction, loss, weighting, multiscale_from=multiscale)(
            network, batch()
        ).loss
        for loss in PREDICTIONS
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-10, atol=0)


def test_the_loss_space_matters_to_the_uniform_weighting() -> None:
    values = [Denoising(RectifiedFlow(), "v", p)(network, batch()).loss for p in PREDICTIONS]
    for one, other in zip(values[1:], values, strict=False):
        # all but the image at t = ½: α = σ there, and errors in eps and x0 are of one size
        assert ((one - other).abs() > 1e-3 * other)[[0, 1, 3]].all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_loss(prediction: Prediction) -> None:
    data = batch()

    def perfect(z: Tensor, logsnr: Tensor, labels: Tensor | None) -> Tensor:
        return target(prediction, data.x0, data.eps, logsnr)

    objective = Denoising(Cosine(), prediction, "eps", multiscale_from=SMALLEST)
    assert objective(perfect, data).loss.tolist() == [0.0] * 4


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradient_against_finite_differences(prediction: Prediction) -> None:
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    objective = Denoising(Cosine(), prediction, "eps", Sigmoid(), multiscale_from=SMALLEST)

    def loss_at(value: Tensor) -> Tensor:
        return objective(lambda z, logsnr, labels: value * z, batch()).loss.mean()

    (gradient,) = torch.autograd.grad(loss_at(scale), scale)
    h = 1e-4  # the loss is quadratic in the scale: central differences are exact
    slope = (loss_at(scale.detach() + h) - loss_at(scale.detach() - h)) / (2.0 * h)
    assert gradient.item() == pytest.approx(slope.item(), rel=1e-6, abs=0.0)
    assert gradient.item() != 0.0


def test_terms_are_detached_and_the_loss_is_not() -> None:
    scale = torch.tensor(0.3, requires_grad=True)
    objective = Denoising(Cosine(), multiscale_from=SMALLEST, correct_density=True)
    losses = objective(lambda z, logsnr, labels: scale * z, batch(torch.float32))
    assert losses.loss.requires_grad
    assert losses.loss.shape == (4,)
    assert losses.terms
    assert not any(term.requires_grad for term in losses.terms.values())


@pytest.mark.parametrize(("prediction", "loss"), PAIRS)
@pytest.mark.parametrize("t", [0.0, 1.0])  # λ = 20 and -20
def test_float32_at_the_ends(prediction: Prediction, loss: Prediction, t: float) -> None:
    """An error of 1e-3, measured through factors of up to 22,000 either way.

    Converting output and target and then subtracting is wrong by half here (x0 to eps, λ = -20).
    """
    schedule = Cosine(-20.0, 20.0)
    generator = torch.Generator().manual_seed(1)
    x0 = torch.rand(1, 3, 32, 32, generator=generator) * 2.0 - 1.0
    eps, wrong = (torch.randn(1, 3, 32, 32, generator=generator) for _ in range(2))
    level = torch.tensor([20.0 - 40.0 * t], dtype=torch.float64)
    output = target(prediction, x0.double(), eps.double(), level).float() + 1e-3 * wrong

    losses = Denoising(schedule, prediction, loss)(
        lambda z, logsnr, labels: output, Batch(x0, eps, torch.tensor([t]))
    )
    alpha, sigma = (
        1.0 / math.sqrt(1.0 + math.exp(-level.item())),
        1.0 / math.sqrt(1.0 + math.exp(level.item())),
    )
    size = {"eps": alpha, "x0": sigma, "v": 1.0, "u": alpha + sigma}  # of an error in v of 1
    error = output.double() - target(prediction, x0.double(), eps.double(), level)
    expected = error.square().mean().item() * (size[loss] / size[prediction]) ** 2
    assert losses.loss.dtype == torch.float32
    # down to 2e-15: pytest's default absolute tolerance of 1e-12 would accept anything
    assert losses.loss.item() == pytest.approx(expected, rel=1e-4, abs=0.0)


def test_half_precision_outputs_are_measured_in_float32() -> None:
    objective = Denoising(Cosine(), "v", "eps", Sigmoid(), correct_density=True)
    data = batch(torch.float32)
    low = objective(lambda *arguments: network(*arguments).bfloat16(), data).loss
    rounded = objective(lambda *arguments: network(*arguments).bfloat16().float(), data).loss
    assert low.dtype == torch.float32
    assert torch.equal(low, rounded)


def test_multiscale_from_the_image_side_is_plain_mse() -> None:
    plain = Denoising(Cosine())(network, batch()).loss
    single = Denoising(Cosine(), multiscale_from=SIDE)(network, batch()).loss
    torch.testing.assert_close(single, plain, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="power of two"):
        Denoising(Cosine(), multiscale_from=3)(network, batch())


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (4, 16)])
def test_the_finest_scale_of_a_rectangle_has_weight_one(shape: tuple[int, int]) -> None:
    # A checkerboard vanishes when it is pooled, so that only the finest scale counts.
    rows, columns = shape
    board = (-1.0) ** (torch.arange(rows)[:, None] + torch.arange(columns)).double()
    data = Batch(
        torch.zeros(1, 3, *shape, dtype=torch.float64),
        torch.zeros(1, 3, *shape, dtype=torch.float64),
        torch.tensor([0.5], dtype=torch.float64),
    )
    losses = Denoising(Cosine(), multiscale_from=4)(lambda z, *_: board.expand(z.shape), data)
    assert losses.loss.item() == pytest.approx(losses.terms["eps_mse"].item(), rel=1e-12, abs=0.0)
    assert losses.loss.item() > 0.1
