"""Each objective, trained on a problem whose flow map is known, arrives at it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simple_diffusion.diffusion.few_step_sampler import StepRule, few_step_sampler
from simple_diffusion.diffusion.guidance import denoiser
from simple_diffusion.diffusion.logsnr import match_dims, path_scale, tau_from_logsnr
from simple_diffusion.diffusion.objectives import (
    Batch,
    ContinuousConsistency,
    Denoising,
    DiscreteConsistency,
    FewStep,
    MeanFlow,
    Shortcut,
)
from simple_diffusion.diffusion.schedules import Cosine
from simple_diffusion.diffusion.step_grid import StepGrid
from tests.diffusion.objectives.linear_gaussian import MEAN, STD, flow

SCHEDULE = Cosine(-10.0, 10.0)
COUNT, RATE = 256, 1e-2
Make = Callable[[Denoising, StepGrid], FewStep]
# and how far one step may be off: what was seen is 0.03, 0.03, 0.01 and 0.03
OBJECTIVES: dict[str, tuple[Make, float]] = {
    "shortcut": (lambda d, g: Shortcut(d, g, share=0.5), 0.06),
    "discrete": (
        lambda d, g: DiscreteConsistency(d, g, share=0.5, weight=0.1, intervals=32, huber=0.03),
        0.1,
    ),
    "continuous": (lambda d, g: ContinuousConsistency(d, g, share=0.5), 0.06),
    "meanflow": (lambda d, g: MeanFlow(d, g, share=0.5), 0.1),
}


class Affine(nn.Module):
    """u = a z + b, a and b learned functions of where a step begins and ends: as the truth is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(
        self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None, step: Tensor | None = None
    ) -> Tensor:
        tau, s = tau_from_logsnr(logsnr), SCHEDULE.inverse(logsnr)
        landing = s if step is None else s - step
        end = tau_from_logsnr(SCHEDULE(landing.clamp(0.0, 1.0)))
        told = [tau, end, tau * end, 0.2 / (tau + 0.2), 0.2 / (end + 0.2), tau - end]
        a, b = self.layers(torch.stack(told, 1).to(z)).unbind(1)
        return match_dims(a, z) * z + match_dims(b, z)


def train(make: Make, steps: int) -> tuple[Affine, Affine, FewStep]:
    """(network, its average, objective)."""
    torch.manual_seed(0)
    network, average = Affine(), Affine()
    average.load_state_dict(network.state_dict())
    objective = make(Denoising(SCHEDULE, prediction="u", loss="u"), StepGrid(SCHEDULE, "t", 64))
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    random = np.random.default_rng(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, 2.0 * (1.0 - step / steps))
        x0 = MEAN + STD * torch.randn(COUNT, 1, 4, 4)
        t = (torch.randperm(COUNT) + torch.rand(COUNT)) / COUNT
        pick = (random.permutation(COUNT) + random.random(COUNT)) / COUNT
        batch = Batch(x0, torch.randn_like(x0), t, None, pick, random.random(COUNT), step * COUNT)
        teacher = average if objective.teacher == "average" else network
        losses = objective(network, batch, teacher)
        optimizer.zero_grad()
        losses.loss.mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                mine.lerp_(theirs, 0.02)
    return network, average, objective


def error(network: nn.Module, objective: FewStep, steps: int) -> float:
    """Of images from the same noise: root mean square over the images' own spread."""
    z = torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    start = SCHEDULE(torch.ones(len(z)))
    tau = match_dims(tau_from_logsnr(start), z)
    exact = flow(z / match_dims(path_scale(start), z), tau, torch.zeros_like(tau))
    with torch.no_grad():
        denoise = denoiser(network, SCHEDULE, "u", clip=False)
        drawn = few_step_sampler(StepRule.of(objective))(denoise, z, SCHEDULE, steps)
    return ((drawn - exact).square().mean().sqrt() / STD).item()


@pytest.mark.integration
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_step_arrives_where_the_flow_does(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    make, bound = OBJECTIVES[name]
    _, average, objective = train(make, 1000 if name == "meanflow" else 600)
    one, many = error(average, objective, 1), error(average, objective, 64)
    record_property("one_step_error", one)
    print(f"{name}: error of one step {one:.4f}, of 64 steps {many:.4f}")
    assert one < bound
    assert many < 0.2  # with the denoiser, which has half of the batch


def test_a_plain_denoiser_is_far_off_in_one_step() -> None:
    """The same measure without few-step training: one step gives the mean image."""
    objective = MeanFlow(Denoising(SCHEDULE, prediction="u"), StepGrid(SCHEDULE, "t", 64))

    def plain(
        z: Tensor, logsnr: Tensor, labels: Tensor | None, step: Tensor | None = None
    ) -> Tensor:
        tau = match_dims(tau_from_logsnr(logsnr), z)
        y = z / match_dims(path_scale(logsnr), z)
        slope = (tau - STD**2 * (1 - tau)) / ((1 - tau) ** 2 * STD**2 + tau**2)
        return -MEAN + slope * (y - (1 - tau) * MEAN)

    assert error(plain, objective, 1) > 0.9
    assert error(plain, objective, 64) < 0.06
