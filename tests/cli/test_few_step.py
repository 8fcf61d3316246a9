"""A run with a few-step objective on the command line, and in diffusers."""

import argparse
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simple_diffusion.cli import sample as sample_verb
from simple_diffusion.cli.export import make_pipeline
from simple_diffusion.pipelines import PixelDiffusionPipeline
from simple_diffusion.training.saved_run import open_run
from tests.trained_run import TrainedRun, train_run


@pytest.fixture(scope="module")
def few_step(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return train_run(
        tiny_shards,
        tmp_path_factory.mktemp("runs") / "few_step",
        model={"step_condition": True},
        few_step={"type": "shortcut", "target_length": 0.05, "guidance": 1.5, "share": 0.5},
        sampling={
            "sampler": "few_step",
            "steps": 2,
            "spacing": "t",
            "guidance": 1.5,
            "guidance_interval": [-math.inf, math.inf],
        },
    )


def draw(run: Path, out: Path, *words: str) -> np.ndarray:
    top = argparse.ArgumentParser()
    sample_verb.add_parser(top.add_subparsers(required=True))
    arguments = top.parse_args(["sample", str(run), "--out", str(out), "--num", "4", *words])
    assert arguments.func(arguments) == 0
    with Image.open(out) as image:
        return np.asarray(image)


def test_one_checkpoint_at_any_number_of_steps(few_step: TrainedRun, tmp_path: Path) -> None:
    pictures = {
        steps: draw(
            few_step.path, tmp_path / f"{steps}.png", "--sampler", "few_step", "--steps", str(steps)
        )
        for steps in (1, 2, 4, 8, 128)
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == 5
    default = draw(few_step.path, tmp_path / "default.png")
    assert np.array_equal(default, pictures[2])
    plain = draw(few_step.path, tmp_path / "plain.png", "--sampler", "ddim", "--steps", "128")
    assert np.abs(plain.astype(int) - pictures[128].astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "3"], "must be 1, 2, 4"),
        (["--guidance", "3"], "samples as it was trained"),
        (["--spacing", "tau"], "samples as it was trained"),
    ],
)
def test_what_was_not_trained_is_refused(
    few_step: TrainedRun, tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(few_step.path, tmp_path / "no.png", *words)


def test_a_plain_run_has_no_few_steps(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is for a few-step objective"):
        draw(trained.path, tmp_path / "no.png", "--sampler", "few_step")


def test_the_exported_pipeline_draws_the_same(few_step: TrainedRun, tmp_path: Path) -> None:
    make_pipeline(open_run(few_step.path)).save_pretrained(tmp_path / "export")
    pipe = PixelDiffusionPipeline.from_pretrained(tmp_path / "export")
    names = few_step.trainer.state.data.classes[:3]
    labels = torch.arange(3)
    for steps in (1, 4, 128):
        ours = pipe(class_labels=names, seed=5, num_inference_steps=steps, output_type="pt").images
        theirs = few_step.images([0, 1, 2], labels, seed=5, steps=steps)
        assert theirs.std() > 0.1
        torch.testing.assert_close(2 * ours - 1, theirs, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"network.s training, 1\.5"):
        pipe(class_labels=names, guidance_scale=3.0)
    with pytest.raises(ValueError, match="malformed"):
        type(pipe.scheduler).from_config({**pipe.scheduler.config, "few_step": {"spacing": "t"}})
