"""What the few-step objectives share: which images do what, and how losses are put together."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.logsnr import alpha_sigma, match_dims
from simple_diffusion.diffusion.multiscale import multiscale_loss
from simple_diffusion.diffusion.objectives import (
    Batch,
    ContinuousConsistency,
    Denoising,
    DiscreteConsistency,
    FewStep,
    MeanFlow,
    Shortcut,
)
from simple_diffusion.diffusion.objectives.few_step import Targets, clipped
from simple_diffusion.diffusion.prediction import PREDICTIONS, Prediction
from simple_diffusion.diffusion.schedules import Cosine, Interpolated, Schedule, Shifted
from simple_diffusion.diffusion.step_grid import StepGrid
from simple_diffusion.diffusion.weighting import Sigmoid
from simple_diffusion.models.uvit import UViT

COUNT, SIDE = 8, 8
SCHEDULE = Interpolated(Cosine(), 64, 32, 64)
VELOCITY = 0.3


@dataclass(frozen=True)
class Constant(FewStep):
    """Wants the same velocity of all images, at positions and step sizes that are known."""

    def targets(self, batch: Batch, teacher: Network) -> Targets:
        s = torch.as_tensor(batch.place)
        return Targets(s, 0.5 * s, torch.full_like(batch.x0, VELOCITY), lambda mse: 2.0 + 0.0 * mse)


def make_batch(share: float = 0.25) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(COUNT, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(COUNT, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, COUNT, dtype=torch.float64)
    pick = (np.random.default_rng(1).permutation(COUNT) + 0.5) / COUNT
    return Batch(x0, eps, t, torch.arange(COUNT), pick, np.linspace(0.3, 1.0, COUNT))


class Recorder:
    """A network that heeds all it is told, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(
        self, z: Tensor, logsnr: Tensor, labels: Tensor | None, step: Tensor | None = None
    ) -> Tensor:
        told = torch.zeros_like(logsnr) if step is None else step
        self.seen.append((z, logsnr, told))
        return 0.3 * z + match_dims(0.1 * torch.tanh(logsnr) + 0.2 * told, z)


def objective(kind: Prediction = "v", schedule: Schedule = SCHEDULE, **options: Any) -> Constant:
    denoising = Denoising(schedule, prediction=kind, weighting=Sigmoid(-1.0), multiscale_from=2)
    return Constant(denoising, StepGrid(schedule, "t", 128), **options)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", [SCHEDULE, Shifted(Cosine(), 128, 64), Cosine()])
def test_images_at_step_size_zero_are_denoised_as_ever(
    kind: Prediction, schedule: Schedule
) -> None:
    """To the last bit."""
    few_step, batch = objective(kind, schedule), make_batch()
    losses = few_step(Recorder(), batch, Recorder())
    plain = few_step.denoising(Recorder(), batch)
    few = torch.as_tensor(batch.pick) < 0.25
    assert few.sum() == 2
    assert torch.equal(losses.loss[~few], plain.loss[~few])
    assert torch.equal(losses.terms["eps_mse"][~few], plain.terms["eps_mse"][~few])
    assert losses.terms["eps_mse"][few].isnan().all()
    assert losses.terms["few_step_mse"][~few].isnan().all()
    assert losses.terms["few_step_mse"][few].isfinite().all()


@pytest.mark.parametrize("loss", ["u", "x0", "v"])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_others_are_measured_where_asked(kind: Prediction, loss: Prediction) -> None:
    """In the same call; the multiscale loss is theirs too, the weighting of λ is not."""
    few_step, batch, network = objective(kind, weight=3.0, loss=loss), make_batch(), Recorder()
    losses = few_step(network, batch, Recorder())
    ((z, logsnr, step),) = network.seen
    few = np.flatnonzero(batch.pick < 0.25)
    assert sorted(step.nonzero().flatten().tolist()) == sorted(few)
    for row in few:
        s = batch.place[row]
        assert step[row].item() == pytest.approx(0.5 * s)
        assert logsnr[row].item() == pytest.approx(SCHEDULE(torch.tensor(s)).item())
        alpha, sigma = (x.item() for x in alpha_sigma(logsnr[row]))
        assert torch.allclose(z[row], alpha * batch.x0[row] + sigma * batch.eps[row])
        out = Recorder()(z[row : row + 1], logsnr[row : row + 1], None, step[row : row + 1])[0]
        here = z[row]
        if kind == "u":
            velocity = out
        elif kind == "x0":
            velocity = (here - alpha * out) / sigma - out
        elif kind == "eps":
            velocity = out - (here - sigma * out) / alpha
        else:
            velocity = (sigma * here + alpha * out) - (alpha * here - sigma * out)
        scale = {"u": 1.0, "x0": -sigma / (alpha + sigma), "v": 1.0 / (alpha + sigma)}[loss]
        error = scale * (velocity - VELOCITY)[None]
        expected = 3.0 * 2.0 * SIDE * multiscale_loss(error, 2).item()
        assert losses.loss[row].item() == pytest.approx(expected, rel=1e-8)
        mse = losses.terms["few_step_mse"][row].item()
        assert mse == pytest.approx(error.square().mean().item(), rel=1e-8)


@pytest.mark.parametrize("pick", [0.0, 0.99])
def test_batches_of_one_kind(pick: float) -> None:
    """A micro-batch may be all of larger steps, or have none."""
    batch = make_batch()
    batch = Batch(batch.x0, batch.eps, batch.t, batch.labels, np.full(COUNT, pick), batch.place)
    losses = objective()(Recorder(), batch, Recorder())
    assert losses.loss.isfinite().all()
    assert losses.terms["few_step_mse"].isnan().all() == (pick > 0.25)
    assert set(losses.terms) == {"eps_mse", "few_step_mse"}


def test_pieces_of_a_batch_are_the_batch() -> None:
    few_step, batch = objective(), make_batch()
    whole = few_step(Recorder(), batch, Recorder()).loss
    parts = [few_step(Recorder(), batch.rows(slice(i, i + 3)), Recorder()) for i in (0, 3, 6)]
    assert torch.allclose(torch.cat([part.loss for part in parts]), whole, rtol=1e-12)


def test_targets_keep_no_gradients() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Learned(Constant):
        def targets(self, batch: Batch, teacher: Network) -> Targets:
            assert not torch.is_grad_enabled()
            return super().targets(batch, teacher)

    denoising = Denoising(SCHEDULE)
    few_step = Learned(denoising, StepGrid(SCHEDULE, "t", 128))
    losses = few_step(lambda z, *_: weight * z, make_batch(), Recorder())
    losses.loss.sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite()


def test_clipping_moves_the_image_and_nothing_else() -> None:
    y = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    tau = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
    velocity = torch.tensor([0.4, 4.0, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    # images 0.3, -3 and 2: the second and third leave the range
    expected = [0.4, (-2.0 + 1.0) / 0.25, (3.0 - 1.0) / 1.0]
    assert clipped(velocity, y, tau).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"weight": 0.0}, "weight"),
        ({"guidance": 2.0}, "class-conditional"),
        ({"loss": "eps"}, "use u, v or x0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Shortcut, DiscreteConsistency, ContinuousConsistency, MeanFlow])
def test_on_a_gpu_as_on_a_cpu_and_without_waiting(kind: type[FewStep]) -> None:
    torch.manual_seed(0)
    network = UViT(
        image_size=SIDE,
        patch_size=2,
        channels=[16],
        blocks=[],
        depth=1,
        head_dim=16,
        condition_width=16,
        step_condition=True,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    few_step = kind(Denoising(SCHEDULE), StepGrid(SCHEDULE, "tau", 128))
    made = make_batch()
    batch = Batch(made.x0.float(), made.eps.float(), made.t.float(), None, made.pick, made.place)
    expected = few_step(network, batch, network).loss
    network.cuda()
    there = Batch(batch.x0.cuda(), batch.eps.cuda(), batch.t.cuda(), None, batch.pick, batch.place)
    few_step(network, there, network)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = few_step(network, there, network).loss
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), expected, rtol=2e-3, atol=2e-3)
