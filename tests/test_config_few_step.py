"""The few-step section of a config: what each type builds, and what does not fit together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from simple_diffusion.config import build_objective
from simple_diffusion.config_files import ConfigError, dump_config, load_config, parse_config
from simple_diffusion.diffusion.objectives import (
    ContinuousConsistency,
    Denoising,
    DiscreteConsistency,
    FewStep,
    MeanFlow,
    Shortcut,
)

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GOOD: dict[str, Any] = {
    "model": {"step_condition": True, "num_classes": 3},
    "ema": {"lengths": [0.1, 0.05]},
    "few_step": {"type": "shortcut"},
    "sampling": {"sampler": "few_step", "spacing": "t", "steps": 4},
    "grids": {"steps": 2},
}


def parse(**sections: Any) -> Any:
    tree = {name: {**GOOD.get(name, {}), **section} for name, section in sections.items()}
    return parse_config(yaml.safe_dump({**GOOD, **tree}), "test")


@pytest.mark.parametrize(
    ("kind", "options", "built", "expected"),
    [
        ("shortcut", {"share": 0.5, "weight": 2.0}, Shortcut, {"share": 0.5, "weight": 2.0}),
        (
            "consistency",
            {"warmup_images": 7, "tangent_offset": 0.2},
            ContinuousConsistency,
            {"warmup_images": 7, "tangent_offset": 0.2, "loss": "u"},  # the network predicts v
        ),
        (
            "discrete_consistency",
            {"intervals": 9, "huber": 0.1},
            DiscreteConsistency,
            {"intervals": 9, "huber": 0.1, "loss": "x0"},
        ),
        (
            "meanflow",
            {"adaptive_power": 0.5, "adaptive_offset": 0.1, "loss": "v"},
            MeanFlow,
            {"adaptive_power": 0.5, "adaptive_offset": 0.1, "loss": "v"},
        ),
    ],
)
def test_what_is_built(
    kind: str, options: dict[str, Any], built: type, expected: dict[str, Any]
) -> None:
    config = parse_config(
        yaml.safe_dump({**GOOD, "few_step": {"type": kind, "base_steps": 64, **options}}), "test"
    )
    objective = build_objective(config)
    assert type(objective) is built
    assert isinstance(objective, FewStep)
    assert {name: getattr(objective, name) for name in expected} == expected
    assert (objective.grid.base_steps, objective.null_label) == (64, 3)
    assert parse_config(dump_config(config), "again") == config


def test_networks_that_predict_x0_are_measured_there() -> None:
    objective = build_objective(parse(objective={"prediction": "x0"}))
    assert isinstance(objective, FewStep)
    assert objective.loss == "x0"


def test_sizes_that_are_not_halves_are_for_others() -> None:
    parse(few_step={"type": "meanflow"}, sampling={"steps": 3}, grids={"steps": 5})


def test_none_is_plain_denoising() -> None:
    plain = parse_config("objective: {prediction: x0}\n", "test")
    assert isinstance(build_objective(plain), Denoising)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"step_condition": False}}, "few_step needs model.step_condition: true"),
        ({"ema": {"lengths": [0.1]}}, "target_length must be one of ema.lengths"),
        ({"sampling": {"spacing": "tau"}}, "set sampling.spacing to t"),
        ({"sampling": {"guidance": 2.0}}, "sampling.guidance to 1.0"),
        ({"few_step": {"guidance": 2.0}}, "sampling.guidance to 2.0"),
        ({"few_step": {"shares": 0.5}}, "share"),
        ({"few_step": {"share": 1.0}}, "share must lie in"),
        ({"few_step": {"weight": float("inf")}}, "weight must be positive"),
        ({"few_step": {"guidance": float("nan")}}, "guidance must be finite"),
        ({"few_step": {"loss": "eps"}}, "must be u, v or x0"),
        ({"few_step": {"base_steps": 100}}, "power of two"),
        ({"sampling": {"steps": 50}}, "sampling.steps must be 1, 2, 4"),
        ({"grids": {"steps": 20}}, "grids.steps must be 1, 2, 4"),
        ({"scores": {"num": 8, "steps": 3}}, "scores.steps must be 1, 2, 4"),
        ({"sampling": {"guidance_interval": [-4.0, 3.0]}}, "guided at all λ"),
    ],
)
def test_what_does_not_fit(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**sections)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {step_condition: true}\n", "is for a few-step objective"),
        ("sampling: {sampler: few_step}\n", "is for a few-step objective"),
    ],
)
def test_leftovers_without_an_objective(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(text, "test")


def test_a_grid_that_is_too_coarse_names_the_spacing_to_use() -> None:
    config = parse(
        schedule={"type": "shifted", "base": {"type": "cosine"}, "reference": 64},
        data={"image_size": 512},
    )
    with pytest.raises(ValueError, match="set the spacing to logsnr or tau"):
        build_objective(config)


def test_shipped_few_step_configs_are_there() -> None:
    kinds = {
        path.stem: type(build_objective(load_config(path))).__name__
        for path in CONFIGS.glob("*.yaml")
    }
    few = {stem: kind for stem, kind in kinds.items() if kind != "Denoising"}
    assert few == {
        "shortcut_icons_64": "Shortcut",
        "shortcut_icons_128": "Shortcut",
        "shortcut_imagenet_256": "Shortcut",
        "shortcut_512": "Shortcut",
        "consistency_icons_64": "ContinuousConsistency",
        "meanflow_icons_64": "MeanFlow",
    }
