"""`simple-diffusion export`: what diffusers loads draws the trainer's images."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from simple_diffusion.cli.export import add_parser
from simple_diffusion.training.grids import grid_labels
from tests.trained_run import TrainedRun

# Another process, in which nothing but this one import is known of simple_diffusion.
RELOAD = """
import sys, json, numpy as np
import simple_diffusion.pipelines
from diffusers import DiffusionPipeline
folder, out, options = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder)
images = pipe(**json.loads(options), output_type="np").images
np.save(out, 2 * images.transpose(0, 3, 1, 2) - 1)
print(json.dumps(pipe.scheduler.logsnr(__import__("torch").linspace(0, 1, 33)).tolist()))
"""


def export(*words: str | Path) -> int:
    top = argparse.ArgumentParser(prog="simple-diffusion")
    add_parser(top.add_subparsers(required=True))
    arguments = top.parse_args(["export", *map(str, words)])
    code = arguments.func(arguments)
    assert isinstance(code, int)
    return code


def reloaded(folder: Path, out: Path, **options: object) -> tuple[torch.Tensor, list[float]]:
    """Images that another process draws, and λ on a grid of t."""
    result = subprocess.run(
        [sys.executable, "-c", RELOAD, folder, out, json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return torch.from_numpy(np.load(out)), json.loads(result.stdout)


def assert_same_images(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.1
    assert (theirs.abs() < 1).float().mean() > 0.2
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_another_process_draws_the_trainers_images(trained: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "export"
    assert export(trained.path, out) == 0
    labels = grid_labels(3, range(6), trained.trainer.state.data.class_counts, 4)
    assert labels is not None
    assert len(set(labels.tolist())) > 1
    names = [trained.trainer.state.data.classes[label] for label in labels]
    images, logsnr = reloaded(out, tmp_path / "images.npy", class_labels=names, seed=3)
    assert_same_images(images, trained.images(list(range(6)), labels, seed=3))
    theirs = trained.trainer.evaluator.sampling.schedule(torch.linspace(0, 1, 33))
    torch.testing.assert_close(torch.tensor(logsnr), theirs, rtol=0, atol=1e-5)


def test_unconditional(unconditional: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "export"
    assert export(unconditional.path, out) == 0
    images, _ = reloaded(out, tmp_path / "images.npy", num_images=3, seed=3, batch_size=2)
    assert_same_images(images, unconditional.images([0, 1, 2], None, seed=3))


@pytest.mark.parametrize("weights", [None, "ema_0.050", "model"])
def test_the_weights_asked_for(trained: TrainedRun, tmp_path: Path, weights: str | None) -> None:
    words = () if weights is None else ("--weights", weights)
    assert export(trained.path, tmp_path / "out", *words) == 0
    expected = trained.network(weights).state_dict()
    tensors = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_an_older_checkpoint_and_a_licence(trained: TrainedRun, tmp_path: Path) -> None:
    assert export(trained.path, tmp_path / "out", "--checkpoint", "8", "--license", "mit") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    for fact in ("after 8 images", "made by the tests", "none needed", "circle, square, stripe"):
        assert fact in card
    assert str(tmp_path) not in card


def test_it_says_how_to_load(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export(trained.path, out)
    printed = capsys.readouterr().out
    assert "import simple_diffusion.pipelines" in printed
    assert f"DiffusionPipeline.from_pretrained({str(out)!r})" in printed
    export(trained.path, out, "--overwrite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--weights", "ema_0.06"), "It has ema_0.050, ema_0.250, model"),
        (("--checkpoint", "9"), "there are 8, 16"),
        (("--license", "MIT license\nevil: true"), "give an abbreviation"),
    ],
)
def test_refused_options(
    trained: TrainedRun, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        export(trained.path, tmp_path / "out", *words)
    assert list(tmp_path.iterdir()) == []


def test_refused_folders(trained: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="other than an export"):
        export(trained.path, trained.path, "--overwrite")
    export(trained.path, tmp_path / "out")
    with pytest.raises(ValueError, match="--overwrite"):
        export(trained.path, tmp_path / "out")
