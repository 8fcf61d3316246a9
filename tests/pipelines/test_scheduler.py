"""Schedules survive JSON exactly; what is not a schedule is refused."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from simple_diffusion.config_noise import (
    CosineConfig,
    InterpolatedConfig,
    LinearBetaConfig,
    RectifiedFlowConfig,
    ScheduleConfig,
    ShiftedConfig,
)
from simple_diffusion.diffusion.schedules import Cosine, Schedule, Shifted
from simple_diffusion.pipelines.schedule_config import TYPES, schedule_from_dict, schedule_to_dict
from simple_diffusion.pipelines.scheduler import PixelScheduler, open_interval

# What a run may be configured with; no value is a default.
CONFIGS: list[ScheduleConfig] = [
    CosineConfig(-12.5, 14.0),
    RectifiedFlowConfig(-9.0, 11.5),
    LinearBetaConfig(2e-4, 0.03, 500, 12.0),
    ShiftedConfig(CosineConfig(-13.0, 13.0), 32),
    ShiftedConfig(LinearBetaConfig(1e-4, 0.01, 1200, 10.0), 96),
    InterpolatedConfig(RectifiedFlowConfig(-8.0, 9.0), 32, 128),
    ShiftedConfig(InterpolatedConfig(CosineConfig(-11.0, 10.0), 16, 48), 40),
]
COSINE = {"type": "cosine", "logsnr_min": -15.0, "logsnr_max": 15.0}


def scheduler(schedule: Schedule, **options: Any) -> PixelScheduler:
    defaults: dict[str, Any] = {
        "sampler": "heun",
        "steps": 7,
        "spacing": "tau",
        "guidance": 3.0,
        "guidance_interval": (-math.inf, 2.5),
    }
    return PixelScheduler.of(schedule, "x0", **{**defaults, **options})


def test_every_kind_of_schedule_is_tried() -> None:
    def kinds(tree: dict[str, Any]) -> set[str]:
        return {tree["type"]}.union(*(kinds(v) for v in tree.values() if isinstance(v, dict)))

    tried = set().union(*(kinds(schedule_to_dict(config.build(64))) for config in CONFIGS))
    assert tried == set(TYPES) == set(ScheduleConfig.get_known_choices())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_reloaded_schedule_is_the_trainers(config: ScheduleConfig, tmp_path: Path) -> None:
    trained = config.build(256)
    scheduler(trained).save_pretrained(tmp_path)
    json.loads(
        (tmp_path / "scheduler_config.json").read_text(),
        parse_constant=lambda word: pytest.fail(f"{word} is not JSON"),
    )
    reloaded = PixelScheduler.from_pretrained(tmp_path)
    t = torch.linspace(0, 1, 101)
    torch.testing.assert_close(reloaded.logsnr(t), trained(t), rtol=0, atol=1e-5)
    assert reloaded.schedule == trained
    assert open_interval(reloaded.config.guidance_interval) == (-math.inf, 2.5)
    kept = {k: v for k, v in reloaded.config.items() if k not in ("schedule", "guidance_interval")}
    assert {k: v for k, v in kept.items() if not k.startswith("_")} == {
        "prediction_type": "x0",
        "sampler": "heun",
        "num_inference_steps": 7,
        "spacing": "tau",
        "guidance_scale": 3.0,
        "few_step": None,
    }


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({**COSINE, "type": "cosin"}, "schedule.type: 'cosin'"),
        ({"type": "cosine", "logsnr_min": -15.0}, "schedule: cosine has logsnr_min, logsnr_max"),
        ({**COSINE, "shift": 2.0}, "shift"),
        ({**COSINE, "logsnr_min": "-15"}, "schedule.logsnr_min: must be a number, not '-15'"),
        ({**COSINE, "logsnr_min": True}, "must be a number"),
        ({**COSINE, "logsnr_min": 20.0}, "logsnr_min=20.0"),
        ({"type": "shifted", "base": COSINE, "image_size": 64.5, "reference": 32}, "image_size"),
        ({"type": "shifted", "base": "cosine", "image_size": 64, "reference": 32}, "schedule.base"),
        (["cosine"], "must be a dict"),
    ],
)
def test_malformed_schedules_are_refused(tree: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        schedule_from_dict(tree)


def test_depth_is_limited() -> None:
    tree: dict[str, Any] = COSINE
    for _ in range(5000):
        tree = {"type": "shifted", "base": tree, "image_size": 64, "reference": 64}
    with pytest.raises(ValueError, match="deep"):
        schedule_from_dict(tree)


def test_an_unknown_schedule_is_not_exported() -> None:
    class Steeper(Cosine):
        pass

    with pytest.raises(ValueError, match="Steeper"):
        schedule_to_dict(Shifted(Steeper(), 64, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dpm"}, "sampler 'dpm' is not one of ddpm, ddim"),
        ({"spacing": "even"}, "spacing 'even' is not one of t, logsnr, tau"),
        ({"guidance_interval": (1.0,)}, "guidance_interval must be"),
    ],
)
def test_unknown_defaults_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        scheduler(Cosine(), **options)


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type 'noise'"):
        PixelScheduler(COSINE, "noise")
