"""Canonical configs: the same mathematics as before, and one form of whatever coincides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.ablate.canonical import canonical, canonical_schedule
from simple_diffusion.config import ModelConfig, ObjectiveConfig, RunConfig, build_denoising
from simple_diffusion.config_noise import (
    CosineConfig,
    InterpolatedConfig,
    LinearBetaConfig,
    RectifiedFlowConfig,
    ScheduleConfig,
    ShiftedConfig,
)
from simple_diffusion.diffusion.objectives import Batch

SIZES = st.sampled_from([16, 32, 64, 128])
PLAIN = st.one_of(
    st.builds(CosineConfig, logsnr_min=st.sampled_from([-15.0, -10.0])),
    st.builds(RectifiedFlowConfig),
    st.builds(LinearBetaConfig),
)


def _interpolated(base: ScheduleConfig, one: int, other: int) -> InterpolatedConfig:
    return InterpolatedConfig(base, min(one, other), max(one, other))


SCHEDULES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.builds(ShiftedConfig, base=inner, reference=SIZES),
        st.builds(_interpolated, inner, SIZES, SIZES),
    ),
    max_leaves=3,
)


@settings(deadline=None)
@given(SCHEDULES, SIZES)
def test_the_schedule_is_the_same_function(schedule: ScheduleConfig, size: int) -> None:
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    plain = canonical_schedule(schedule, size)
    torch.testing.assert_close(
        plain.build(size)(t), schedule.build(size)(t), rtol=1e-12, atol=1e-12
    )
    assert canonical_schedule(plain, size) == plain


@pytest.mark.parametrize(
    ("schedule", "size", "expected"),
    [
        (ShiftedConfig(CosineConfig(), 64), 64, CosineConfig()),
        (ShiftedConfig(CosineConfig(), 64), 128, ShiftedConfig(CosineConfig(), 64)),
        (InterpolatedConfig(CosineConfig(), 32, 32), 64, ShiftedConfig(CosineConfig(), 32)),
        (InterpolatedConfig(CosineConfig(), 64, 64), 64, CosineConfig()),
        (
            InterpolatedConfig(CosineConfig(), 32, 64),
            64,
            InterpolatedConfig(CosineConfig(), 32, 64),
        ),
        (
            InterpolatedConfig(CosineConfig(), 32, None),
            128,
            InterpolatedConfig(CosineConfig(), 32, 128),
        ),
        (InterpolatedConfig(CosineConfig(), 32, None), 32, CosineConfig()),
        (ShiftedConfig(ShiftedConfig(CosineConfig(), 64), 32), 64, ShiftedConfig(reference=32)),
    ],
)
def test_what_coincides_has_one_form(
    schedule: ScheduleConfig, size: int, expected: ScheduleConfig
) -> None:
    assert canonical_schedule(schedule, size) == expected


def test_a_multiscale_loss_of_one_scale_is_the_plain_loss() -> None:
    """What the canonical form drops changes no loss."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 3, 16, 16, generator=generator)
    batch = Batch(x0=image, eps=image.flip(0), t=torch.tensor([0.1, 0.5, 0.9]), labels=None)
    schedule = CosineConfig().build(16)

    def loss(smallest: int | None) -> torch.Tensor:
        objective = build_denoising(ObjectiveConfig(multiscale_from=smallest), schedule)
        return objective(lambda z, logsnr, labels: 0.1 * z, batch).loss

    torch.testing.assert_close(loss(16), loss(None))
    assert not torch.allclose(loss(8), loss(None))


@pytest.mark.parametrize(
    ("scale", "expected"), [(None, None), (32, 32), (64, None), (128, 128), (16, 16)]
)
def test_multiscale(scale: int | None, expected: int | None) -> None:
    config = RunConfig(objective=ObjectiveConfig(multiscale_from=scale))
    assert config.data.image_size == 64
    assert canonical(config).objective.multiscale_from == expected


def test_a_dropout_of_nothing_has_no_resolution() -> None:
    plain = canonical(RunConfig(model=ModelConfig(dropout=0.0, dropout_resolution=16)))
    assert plain.model.dropout_resolution is None
    some = RunConfig(model=ModelConfig(dropout=0.1, dropout_resolution=16))
    assert canonical(some) == some
