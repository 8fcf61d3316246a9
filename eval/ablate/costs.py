"""What a cell costs, counted on networks without content."""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from eval.ablate.spec import CellSpec
from simple_diffusion.config import ModelConfig, RunConfig, build_objective
from simple_diffusion.config_few_step import FewStepConfig, StepsConfig
from simple_diffusion.config_noise import ScheduleConfig
from simple_diffusion.diffusion.few_step_sampler import StepRule, sampler_named
from simple_diffusion.diffusion.guidance import denoiser
from simple_diffusion.diffusion.objectives import FewStep
from simple_diffusion.diffusion.randomness import generators
from simple_diffusion.plan.counts import count_flops, count_parameters

_FewStep = tuple[FewStepConfig, ScheduleConfig, tuple[float, ...]]


@dataclass(frozen=True)
class Cost:
    """Of one cell. A multiply-add counts as 2.

    Attributes:
        images: trained on; None where the budget is a time.
        parameters: of the network.
        step_flops: of one image in a training step.
        train_flops: of the whole training; None where the budget is a time.
        sample_flops: of all images that are drawn.
    """

    images: int | None
    parameters: int
    step_flops: float
    train_flops: float | None
    sample_flops: float


def cost_of(spec: CellSpec) -> Cost:
    """Count one cell.

    Raises:
        ValueError: a config whose network, objective or sampling does not fit together.
    """
    config = spec.config
    # xformers computes what sdpa does, and a network with it cannot be made without a GPU
    model = replace(config.model, attention="sdpa")
    size, scale = config.data.image_size, config.objective.multiscale_from
    few_step = None
    if isinstance(config.few_step, StepsConfig):
        few_step = (config.few_step, config.schedule, config.ema.lengths)
    parameters, forward, step = _network_cost(model, size, scale, few_step)
    batch, micro = config.train.batch_size, config.train.micro_batch_size
    if micro is not None and batch % micro:
        raise ValueError(f"train.micro_batch_size {micro} does not divide batch_size {batch}")
    images = spec.budget.images
    return Cost(
        images=images,
        parameters=parameters,
        step_flops=step,
        train_flops=None if images is None else float(images) * step,
        sample_flops=float(_drawn(spec)) * network_rows(spec) * forward,
    )


def _drawn(spec: CellSpec) -> int:
    """Images drawn: for the scores, along the curve, and for the data of a later generation."""
    measure, images = spec.measure, spec.config.train.total_images
    every = measure.curve_every_images
    points = 1 if every is None else 2 + math.ceil(images / every)  # the start and the end too
    return points * measure.num + (spec.data.images if spec.data is not None and spec.parent else 0)


def network_rows(spec: CellSpec) -> int:
    """How often the network sees one image while it is drawn, counted by drawing a pixel."""
    config, measure = spec.config, spec.measure.of(spec.config)
    conditional = config.model.num_classes > 0
    label = torch.zeros(1, dtype=torch.int64) if conditional else None
    seen = 0

    def network(z: Tensor, logsnr: Tensor, *_: Tensor | None) -> Tensor:
        nonlocal seen
        seen += z.shape[0]
        return z

    assert measure.sampler is not None
    assert measure.steps is not None
    objective = build_objective(config)
    rule = StepRule.of(objective) if isinstance(objective, FewStep) else None
    sampler = sampler_named(measure.sampler, rule)
    schedule = config.schedule.build(config.data.image_size)
    denoise = denoiser(
        network,
        schedule,
        "x0",
        labels=label,
        null_label=0 if conditional else None,
        guidance=(measure.guidance or 0.0) if conditional else 1.0,
        interval=config.sampling.guidance_interval,
    )
    pixel = torch.zeros(1, 1, 1, 1)
    spacing = config.sampling.spacing
    each = generators(0, "count", [0], pixel.device)
    sampler(denoise, pixel, schedule, measure.steps, spacing=spacing, generators=each)
    return seen


@cache
def _network_cost(
    model: ModelConfig, image_size: int, scale: int | None, few_step: _FewStep | None
) -> tuple[int, int, int]:
    """(parameters, FLOPs forward, FLOPs of a training step) of one image."""
    usual = RunConfig()
    config = replace(
        usual,
        model=replace(model, step_condition=False),
        data=replace(usual.data, image_size=image_size),
        objective=replace(usual.objective, multiscale_from=scale),
    )
    if few_step is not None:
        steps, schedule, lengths = few_step
        ema = replace(usual.ema, lengths=lengths)
        config = replace(config, model=model, few_step=steps, schedule=schedule, ema=ema)
    forward, step = count_flops(config)
    return sum(count_parameters(config).values()), forward, step
