"""What a few-step objective adds to the plan: calls of its teacher."""

from dataclasses import replace

import pytest

from simple_diffusion.config import RunConfig
from simple_diffusion.config_few_step import (
    FewStepConfig,
    MeanFlowConfig,
    ShortcutConfig,
)
from simple_diffusion.config_files import parse_config
from simple_diffusion.plan import make_plan
from simple_diffusion.plan.counts import count_flops, count_teacher_calls

PLAIN = parse_config(
    """
data: {image_size: 16}
model:
  {patch_size: 2, channels: [16, 32], blocks: [1], depth: 2, head_dim: 16, num_classes: 3,
   condition_width: 8}
train: {batch_size: 8, precision: fp32, total_images: 64}
ema: {lengths: [0.05]}
sampling: {steps: 4, batch_size: 4}
""",
    "test",
)


def with_few_step(few_step: FewStepConfig) -> RunConfig:
    return replace(PLAIN, few_step=few_step, model=replace(PLAIN.model, step_condition=True))


@pytest.mark.parametrize(
    ("few_step", "calls"),
    [
        (ShortcutConfig(share=0.25), 0.25 * 2),
        (ShortcutConfig(share=0.5), 0.5 * 2),
        # of seven sizes the smallest is guided, and asks both halves without a class too
        (ShortcutConfig(share=0.25, guidance=2.0), 0.25 * (2 + 2 / 7)),
    ],
)
def test_flops_of_the_teachers_calls(few_step: ShortcutConfig, calls: float) -> None:
    forward, step = count_flops(PLAIN)
    ours_forward, ours_step = count_flops(with_few_step(few_step))
    assert ours_forward == pytest.approx(forward, rel=0.02)  # the step's embedding
    assert ours_step == pytest.approx(step + calls * forward, rel=0.02)


@pytest.mark.parametrize(
    ("few_step", "calls"),
    [
        (ShortcutConfig(), 2),  # the two halves
        (ShortcutConfig(guidance=2.0), 4),  # each without a class too
        (MeanFlowConfig(), 2),  # its own velocity, and the derivative along it
    ],
)
def test_calls_of_the_teacher(few_step: FewStepConfig, calls: int) -> None:
    assert count_teacher_calls(with_few_step(few_step)) == calls
    assert count_teacher_calls(PLAIN) == 0


def test_memory_of_objectives_that_differentiate_is_planned_without_derivatives() -> None:
    shortcut = make_plan(with_few_step(ShortcutConfig()))
    meanflow = make_plan(with_few_step(MeanFlowConfig()))
    assert meanflow.memory["training"].total == pytest.approx(
        shortcut.memory["training"].total, rel=0.05
    )
    assert any("derivative" in note for note in meanflow.notes)
    assert not any("derivative" in note for note in shortcut.notes)
    assert meanflow.step_flops > shortcut.step_flops > make_plan(PLAIN).step_flops
