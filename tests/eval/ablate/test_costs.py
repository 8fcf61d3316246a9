"""Costs of cells against counts by hand."""

import math
from dataclasses import replace

import pytest

from eval.ablate.costs import cost_of, network_rows
from eval.ablate.spec import Budget, CellSpec, DataRecipe, Measure
from simple_diffusion.config import DataConfig, ModelConfig, RunConfig, SamplingConfig
from simple_diffusion.plan.counts import count_flops, count_parameters

CONFIG = RunConfig(
    data=DataConfig(image_size=16),
    model=ModelConfig(patch_size=4, channels=(16,), blocks=(), depth=1, head_dim=16),
)
CLASSES = replace(CONFIG, model=replace(CONFIG.model, num_classes=3))


def spec_of(config: RunConfig, **measure: object) -> CellSpec:
    return CellSpec(config, Measure(**measure), Budget(images=100))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "measure", "rows"),
    [
        (CONFIG, {"sampler": "ddim", "steps": 7}, 7),
        (CONFIG, {"sampler": "dpm++2m", "steps": 7}, 7),
        (CONFIG, {"sampler": "heun", "steps": 7}, 13),  # the step to λ = ∞ is Euler's
        (CONFIG, {"sampler": "ddim", "steps": 7, "guidance": 2.0}, 7),  # no classes to guide by
        (CLASSES, {"sampler": "ddim", "steps": 7, "guidance": 1.0}, 7),
        (CLASSES, {"sampler": "ddim", "steps": 7, "guidance": 2.0}, 14),
        (CLASSES, {"sampler": "ddim", "steps": 7, "guidance": 0.0}, 14),
        (CLASSES, {"sampler": "heun", "steps": 7, "guidance": 3.0}, 26),
    ],
)
def test_how_often_the_network_sees_an_image(
    config: RunConfig, measure: dict[str, object], rows: int
) -> None:
    assert network_rows(spec_of(config, **measure)) == rows


def test_guidance_on_an_interval_costs_less() -> None:
    sampling = SamplingConfig("ddim", 30, "logsnr", 2.0, (-5.4, 5.4))
    # seen at λ = -15, -14, ..., 14; guided from -5 to 5
    assert network_rows(spec_of(replace(CLASSES, sampling=sampling))) == 30 + 11


def test_flops_add_up() -> None:
    parameters = sum(count_parameters(CLASSES).values())
    forward, step = count_flops(CLASSES)
    measure = {"num": 50, "steps": 3, "guidance": 2.0, "curve_every_images": 100}
    config = replace(CLASSES, train=replace(CLASSES.train, total_images=250))
    spec = CellSpec(config, Measure(**measure), Budget(images=250))  # type: ignore[arg-type]
    cost = cost_of(spec)
    assert cost.parameters == parameters
    assert cost.images == 250
    assert cost.step_flops == step
    assert cost.train_flops == 250 * step
    assert cost.sample_flops == (1 + 4) * 50 * 3 * 2 * forward
    child = replace(spec, data=DataRecipe("0" * 12, generation=1, images=70))
    extra = cost_of(child).sample_flops - cost.sample_flops
    assert extra == 70 * 3 * 2 * forward


def test_a_budget_of_time_promises_no_images() -> None:
    cost = cost_of(CellSpec(CONFIG, Measure(), Budget(minutes=2)))
    assert cost.images is None
    assert cost.train_flops is None
    assert math.isfinite(cost.sample_flops)


@pytest.mark.parametrize(
    ("config", "measure", "message"),
    [
        (replace(CONFIG, model=replace(CONFIG.model, patch_size=5)), {}, "5"),
        (CONFIG, {"sampler": "rk4"}, "is not one of ddpm"),
        (
            replace(CONFIG, objective=replace(CONFIG.objective, multiscale_from=3)),
            {},
            "multiscale loss from 3",
        ),
        (
            replace(CONFIG, train=replace(CONFIG.train, batch_size=64, micro_batch_size=10)),
            {},
            "does not divide",
        ),
    ],
)
def test_a_config_that_cannot_be_built(
    config: RunConfig, measure: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cost_of(spec_of(config, **measure))
