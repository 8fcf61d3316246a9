"""The few-step sampler: exact for the exact network at any number of steps."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from simple_diffusion.diffusion.few_step_sampler import StepRule, few_step_sampler, sampler_named
from simple_diffusion.diffusion.guidance import denoiser
from simple_diffusion.diffusion.logsnr import match_dims, path_scale, tau_from_logsnr
from simple_diffusion.diffusion.objectives import (
    ContinuousConsistency,
    Denoising,
    MeanFlow,
    Shortcut,
)
from simple_diffusion.diffusion.randomness import generators, normals
from simple_diffusion.diffusion.samplers import SAMPLERS, ddim
from simple_diffusion.diffusion.schedules import Cosine, Interpolated, Schedule
from simple_diffusion.diffusion.spacing import SPACINGS, Spacing
from simple_diffusion.diffusion.step_grid import StepGrid
from tests.diffusion.objectives.linear_gaussian import MEAN, STD, ExactNetwork, flow

CPU = torch.device("cpu")
AVERAGE, DYADIC, TO_DATA = (False, False), (False, True), (True, False)


def rule(
    schedule: Schedule = Cosine(),  # noqa: B008 - frozen
    spacing: Spacing = "t",
    kind: tuple[bool, bool] = AVERAGE,
) -> StepRule:
    return StepRule(StepGrid(schedule, spacing, 128), *kind)


def noise(count: int = 6) -> Tensor:
    return normals(generators(0, "sample", range(count), CPU), (1, 2, 2), torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [Cosine(), Interpolated(Cosine(), 64, 32, 64)])
def test_the_flow_at_any_number_of_steps(schedule: Schedule, spacing: Spacing, steps: int) -> None:
    """One step or many: each pixel goes where the probability flow takes it."""
    given = rule(schedule, spacing)
    network, z = ExactNetwork(given.grid), noise()
    denoise = denoiser(network, schedule, "u", clip=False)
    drawn = few_step_sampler(given)(denoise, z, schedule, steps, spacing=spacing)
    start = schedule(torch.ones(len(z), dtype=torch.float64))
    tau = match_dims(tau_from_logsnr(start), z)
    expected = flow(z / match_dims(path_scale(start), z), tau, torch.zeros_like(tau))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_consistency_networks_draw_the_distribution(steps: int) -> None:
    """Exact images, noised again between: any number of steps has the mean and the spread."""
    given = rule(kind=TO_DATA)
    count = 4000
    each = generators(0, "sample", range(count), CPU)
    z = normals(each, (1, 1, 1), torch.float64)
    denoise = denoiser(ExactNetwork(given.grid), Cosine(), "u", clip=False)
    drawn = few_step_sampler(given)(denoise, z, Cosine(), steps, generators=each)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * STD / count**0.5)
    assert drawn.std().item() == pytest.approx(STD, rel=4 / (2 * count) ** 0.5)
    assert steps == 1 or not torch.allclose(drawn[:2], drawn[2:4])


@pytest.mark.parametrize(
    ("kind", "steps", "told"),
    [
        (AVERAGE, 4, [(1.0, 0.25), (0.75, 0.25), (0.5, 0.25), (0.25, 0.25)]),
        (DYADIC, 2, [(1.0, 0.5), (0.5, 0.5)]),
        (TO_DATA, 4, [(1.0, 1.0), (0.75, 0.75), (0.5, 0.5), (0.25, 0.25)]),
        (AVERAGE, 3, [(1.0, 1 / 3), (2 / 3, 1 / 3), (1 / 3, 1 / 3)]),
    ],
)
def test_what_the_network_is_told(
    kind: tuple[bool, bool], steps: int, told: list[tuple[float, float]]
) -> None:
    seen: list[tuple[float, float]] = []
    progress: list[int] = []

    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        seen.append((t, step))
        return 0.5 * z

    sampler = few_step_sampler(rule(kind=kind))
    each = generators(0, "x", range(6), CPU)
    sampler(denoise, noise(), Cosine(), steps, generators=each, on_step=progress.append)
    assert [value for pair in seen for value in pair] == pytest.approx(
        [value for pair in told for value in pair]
    )
    assert progress == list(range(1, steps + 1))


@pytest.mark.parametrize("kind", [AVERAGE, DYADIC, TO_DATA])
@pytest.mark.parametrize("steps", [128, 200])
def test_base_steps_are_eulers_with_the_denoiser(kind: tuple[bool, bool], steps: int) -> None:
    def denoise(z: Tensor, t: float, step: float) -> Tensor:
        assert step == 0.0
        return 0.5 * torch.tanh(z)

    z = noise()
    drawn = few_step_sampler(rule(kind=kind))(denoise, z, Cosine(), steps)
    assert torch.equal(drawn, ddim(denoise, z, Cosine(), steps))


@pytest.mark.parametrize("kind", [AVERAGE, TO_DATA])
@pytest.mark.parametrize("steps", [1, 4, 50, 128])
def test_a_perfect_denoiser_ends_on_the_image(kind: tuple[bool, bool], steps: int) -> None:
    x0 = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 1, 2, 2)
    each = generators(0, "x", range(6), CPU)
    drawn = few_step_sampler(rule(kind=kind))(
        lambda z, t, step: x0, noise(), Cosine(), steps, generators=each
    )
    torch.testing.assert_close(drawn, x0, rtol=0, atol=1e-5)


def test_consistency_samples_do_not_depend_on_the_batch() -> None:
    def draw(positions: Sequence[int]) -> Tensor:
        each = generators(9, "sample", positions, CPU)
        z = normals(each, (1, 4, 4))
        sampler = few_step_sampler(rule(kind=TO_DATA))
        return sampler(lambda z, t, s: z.tanh(), z, Cosine(), 4, generators=each)

    whole = draw(range(8))
    for positions in ([0, 1, 2], [5], [6, 2]):
        assert torch.equal(draw(positions), whole[positions])


def test_guidance_is_in_the_steps_already() -> None:
    """Two calls at step size 0, one at others."""
    calls: list[int] = []

    def network(z: Tensor, logsnr: Tensor, labels: Tensor, step: Tensor | None = None) -> Tensor:
        calls.append(len(z))
        return z

    labels = torch.zeros(6, dtype=torch.int64)
    denoise = denoiser(network, Cosine(), "x0", labels=labels, null_label=3, guidance=2.0)
    few_step_sampler(rule())(denoise, noise(), Cosine(), 2)
    assert calls == [6, 6]
    calls.clear()
    few_step_sampler(rule())(denoise, noise(), Cosine(), 128)
    assert calls == [12] * 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "3 steps were not trained, only 1, 2, 4, ... 128"),
        ({"steps": 4, "spacing": "tau"}, "even in t, not in tau"),
        ({"steps": 4, "end": 2.0}, "cannot stop"),
        ({"steps": 0}, "at least one step"),
    ],
)
def test_what_was_not_trained_is_refused(options: dict[str, float], message: str) -> None:
    sampler = few_step_sampler(rule(kind=DYADIC))
    with pytest.raises(ValueError, match=message):
        sampler(lambda z, t, step: z, noise(), Cosine(), **options)


def test_rules_of_the_objectives_and_names_of_samplers() -> None:
    grid = StepGrid(Cosine(), "t", 128)
    made = [
        StepRule.of(one(Denoising(Cosine()), grid)) for one in (Shortcut, ContinuousConsistency)
    ]
    assert made == [StepRule(grid, False, True), StepRule(grid, True, False)]
    assert StepRule.of(MeanFlow(Denoising(Cosine()), grid)) == StepRule(grid, False, False)
    assert sampler_named("ddim") is SAMPLERS["ddim"]
    assert sampler_named("few_step", made[0]) is not None
    with pytest.raises(ValueError, match="few-step objective"):
        sampler_named("few_step")
    with pytest.raises(ValueError, match="not one of"):
        sampler_named("dim", made[0])
