"""`simple-diffusion sample`: the trainer's pictures, in every form, and what it refuses."""

import argparse
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.manifest import Manifest
from data_pipelines.shards import ShardReader
from data_pipelines.store import open_store
from simple_diffusion.cli.sample import add_parser
from simple_diffusion.diffusion.generate import to_uint8
from simple_diffusion.training import grids
from simple_diffusion.training.sampling import Sampling
from tests.conftest import CLASSES
from tests.trained_run import TrainedRun


def sample(*words: str | Path) -> int:
    top = argparse.ArgumentParser(prog="simple-diffusion")
    add_parser(top.add_subparsers(required=True))
    arguments = top.parse_args(["sample", *map(str, words)])
    code = arguments.func(arguments)
    assert isinstance(code, int)
    return code


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def tiles(path: Path, columns: int) -> Tensor:
    """The pictures of a grid, (rows·columns, 3, 16, 16), uint8."""
    sheet = torch.from_numpy(pixels(path).copy())
    rows = sheet.shape[0] // 16
    assert sheet.shape == (16 * rows, 16 * columns, 3)
    split = sheet.reshape(rows, 16, columns, 16, 3).permute(0, 2, 4, 1, 3)
    return split.reshape(rows * columns, 3, 16, 16)


def assert_same_pictures(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for rounding, and not because there is nothing to see."""
    assert theirs.std() > 0.1
    assert (theirs.abs() < 1).float().mean() > 0.2
    assert (ours.int() - to_uint8(theirs).int()).abs().max() <= 1
    assert (ours == to_uint8(theirs)).float().mean() > 0.99


class TestPictures:
    def test_defaults_draw_the_final_grid(self, trained: TrainedRun) -> None:
        assert sample(trained.path, "--num", "9") == 0
        final, drawn = (
            pixels(trained.path / "samples" / name) for name in ("final.png", "sample.png")
        )
        assert final.shape == drawn.shape == (48, 48, 3)
        assert final.std() > 20
        assert np.abs(final.astype(int) - drawn.astype(int)).max() <= 1

    def test_classes_in_turn(self, trained: TrainedRun, tmp_path: Path) -> None:
        out = tmp_path / "new" / "grid.png"
        words = ("--classes", "stripe", "0", "--columns", "5", "--batch_size", "3")
        assert sample(trained.path, "--out", out, "--num", "5", *words) == 0
        theirs = trained.images([0, 1, 2, 3, 4], torch.tensor([2, 0, 2, 0, 2]), seed=3)
        assert_same_pictures(tiles(out, 5), theirs)
        assert [path.name for path in out.parent.iterdir()] == ["grid.png"]

    def test_every_option_counts(self, trained: TrainedRun, tmp_path: Path) -> None:
        def drawn(*words: str) -> Tensor:
            out = tmp_path / "grid.png"
            classes = ("--classes", "1", "--num", "2", "--columns", "2")
            assert sample(trained.path, "--out", out, *classes, *words) == 0
            return tiles(out, 2).int()

        usual = drawn()
        options = [
            ("--seed", "4"),
            ("--steps", "3"),
            ("--sampler", "ddpm"),
            ("--spacing", "t"),
            ("--guidance", "5"),
            ("--guidance_interval", "-9", "9"),
            ("--precision", "bf16"),
            ("--weights", "model"),
            ("--checkpoint", "8"),
        ]
        same = [words[0] for words in options if (drawn(*words) - usual).abs().max() < 2]
        assert same == []
        assert torch.equal(drawn("--seed", "3", "--steps", "6", "--guidance", "2"), usual)

    def test_single_files(self, trained: TrainedRun, tmp_path: Path) -> None:
        folder = tmp_path / "images"
        (trained.path / "samples" / "sample.png").unlink(missing_ok=True)
        assert sample(trained.path, "--images_dir", folder, "--num", "6") == 0
        assert not (trained.path / "samples" / "sample.png").exists()
        assert sorted(path.name for path in folder.iterdir()) == [f"{i:06d}.png" for i in range(6)]
        labels = grids.grid_labels(3, range(6), trained.trainer.state.data.class_counts, 4)
        ours = torch.stack(
            [
                torch.from_numpy(pixels(path).copy()).permute(2, 0, 1)
                for path in sorted(folder.iterdir())
            ]
        )
        assert_same_pictures(ours, trained.images(list(range(6)), labels, seed=3))
        grid = tmp_path / "grid.png"
        both = ("--out", grid, "--images_dir", tmp_path / "both", "--num", "4", "--columns", "2")
        assert sample(trained.path, *both) == 0
        assert torch.equal(tiles(grid, 2), ours[:4])

    def test_unconditional(self, unconditional: TrainedRun, tmp_path: Path) -> None:
        out = tmp_path / "grid.png"
        assert sample(unconditional.path, "--out", out, "--num", "3", "--columns", "3") == 0
        assert_same_pictures(tiles(out, 3), unconditional.images([0, 1, 2], None, seed=3))


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"), [("16x32", (16, 32)), ("32x16", (32, 16)), ("24", (24, 24))]
    )
    def test_other_than_in_training(
        self,
        trained: TrainedRun,
        tmp_path: Path,
        text: str,
        size: tuple[int, int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        words = ("--images_dir", tmp_path / "images", "--num", "2", "--classes", "1")
        assert sample(trained.path, *words, "--size", text) == 0
        assert f"2 images of {size[0]}x{size[1]} by" in capsys.readouterr().out
        ours = [pixels(path) for path in sorted((tmp_path / "images").iterdir())]
        assert [picture.shape for picture in ours] == [(*size, 3)] * 2
        # The trainer's own sampling, of the same schedule, with another shape.
        sampling = replace(trained.trainer.evaluator.sampling, shape=(3, *size))
        theirs = sampling.images(trained.network(), [0, 1], torch.tensor([1, 1]), seed=3)
        drawn = torch.from_numpy(np.stack(ours)).permute(0, 3, 1, 2)
        assert_same_pictures(drawn, theirs)

    def test_that_of_training_is_the_default(self, trained: TrainedRun, tmp_path: Path) -> None:
        out, drawn = tmp_path / "grid.png", []
        for words in ((), ("--size", "16"), ("--size", "16x16")):
            assert sample(trained.path, "--out", out, "--num", "2", *words) == 0
            drawn.append(out.read_bytes())
        assert drawn[0] == drawn[1] == drawn[2]

    def test_a_grid_of_tall_images(self, trained: TrainedRun, tmp_path: Path) -> None:
        out = tmp_path / "grid.png"
        words = ("--num", "3", "--columns", "2", "--size", "24x8")
        assert sample(trained.path, "--out", out, *words) == 0
        assert pixels(out).shape == (48, 16, 3)

    def test_shards_say_it(self, trained: TrainedRun, tmp_path: Path) -> None:
        out = tmp_path / "shards"
        words = ("--shards", out, "--num", "2", "--steps", "2")
        assert sample(trained.path, *words, "--size", "8x20") == 0
        assert Manifest.load(out).recipe["size"] == [8, 20]
        reader = ShardReader(open_store(out))
        stored = reader.read(0, 0)
        assert (stored.height, stored.width) == (8, 20)
        with pytest.raises(ValueError, match=r"size: .*--overwrite"):
            sample(trained.path, *words)
        assert sample(trained.path, *words, "--size", "16", "--overwrite") == 0
        assert "size" not in Manifest.load(out).recipe  # as drawn before there were other sizes

    @pytest.mark.parametrize("target", ["--out", "--images_dir", "--shards"])
    def test_the_networks_multiple(self, trained: TrainedRun, tmp_path: Path, target: str) -> None:
        message = "--size 18x33: height and width must be divisible by 4 .* nearest size is 16x32"
        with pytest.raises(ValueError, match=message):
            sample(trained.path, target, tmp_path / "new" / "x.png", "--size", "18x33")
        with pytest.raises(ValueError, match="nearest size is 4x16"):
            sample(trained.path, target, tmp_path / "new" / "x.png", "--size", "1x16")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", ["0", "16x0", "16x", "x16", "-16", "16x16x3", "16.5", "a"])
    def test_what_is_no_size(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            sample("run", f"--size={text}")
        assert "--size: must be" in capsys.readouterr().err


class TestShards:
    def test_they_are_drawn_as_asked(
        self, trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "shards"
        (trained.path / "samples" / "sample.png").unlink(missing_ok=True)
        asked = ("--shards", out, "--num", "5", "--classes", "1", "--seed", "4", "--steps", "3")
        words = (*asked, "--weights", "model", "--checkpoint", "8")
        assert sample(trained.path, *words) == 0
        manifest = Manifest.load(out)
        assert (manifest.num_samples, manifest.synthetic) == (5, 5)
        assert (manifest.classes, manifest.class_counts) == (CLASSES, (0, 5, 0))
        drawn = {"num": 5, "seed": 4, "steps": 3, "weights": "model", "images_seen": 8}
        assert manifest.recipe.items() >= drawn.items()
        assert not (trained.path / "samples" / "sample.png").exists()
        assert "5 synthetic" in capsys.readouterr().out
        assert sample(trained.path, *words) == 0
        assert "complete already" in capsys.readouterr().out

    def test_another_set_is_replaced_on_request(self, trained: TrainedRun, tmp_path: Path) -> None:
        words = ("--shards", tmp_path / "shards", "--num", "3")
        sample(trained.path, *words)
        with pytest.raises(ValueError, match=r"seed: 3 -> 4.*--overwrite"):
            sample(trained.path, *words, "--seed", "4")
        assert sample(trained.path, *words, "--seed", "4", "--overwrite") == 0
        assert Manifest.load(tmp_path / "shards").recipe["seed"] == 4

    @pytest.mark.parametrize("option", ["out", "images_dir", "columns"])
    def test_nothing_else_is_drawn(self, trained: TrainedRun, tmp_path: Path, option: str) -> None:
        with pytest.raises(ValueError, match=f"--{option} does not go with --shards.*data show"):
            sample(trained.path, "--shards", tmp_path / "shards", f"--{option}", "3")
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--classes", "circel"), "unknown class 'circel'; did you mean 'circle'?"),
            (("--classes", "3"), "this model's classes are 0 to 2"),
            (("--sampler", "dpm++"), "'dpm++' is not one of ddpm, ddim"),
            (("--sampler", "dpm++"), "did you mean dpm++2m?"),
            (("--spacing", "even"), "'even' is not one of t, logsnr, tau"),
            (("--weights", "ema_0.06"), "It has ema_0.050, ema_0.250, model"),
            (("--checkpoint", "9"), "no checkpoint at image 9; there are 8, 16"),
            (("--guidance_interval", "3", "-3"), "LO must not exceed HI"),
            (("--guidance_interval", "nan", "3"), "LO must not exceed HI"),
            (("--out", "grid.jpg"), "must be a file named *.png"),
            (("--overwrite",), "--overwrite is for a shard set; add --shards OUT"),
            (("--images_dir", "images", "--columns", "2"), "--columns is for the grid"),
        ],
    )
    def test_options(
        self,
        trained: TrainedRun,
        words: tuple[str, ...],
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=re.escape(message)):
            sample(trained.path, *words)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("option", ["--num", "--steps", "--batch_size", "--columns"])
    def test_counts(self, option: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            sample("run", option, "0")
        assert f"{option}: must be at least 1" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--guidance", "2"), "unconditional model, which has nothing to guide towards"),
            (("--classes", "circle"), "this model is unconditional"),
        ],
    )
    def test_classes_of_an_unconditional_network(
        self, unconditional: TrainedRun, words: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            sample(unconditional.path, *words)

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="not a run"):
            sample(tmp_path)

    def test_a_folder_with_other_pictures(self, trained: TrainedRun, tmp_path: Path) -> None:
        (tmp_path / "000099.png").write_text("")
        with pytest.raises(ValueError, match="is not empty"):
            sample(trained.path, "--images_dir", tmp_path)


def test_interrupted_it_leaves_no_half_file(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained.path, tmp_path / "run")
    before = sorted((run / "samples").iterdir())
    draw, batches = Sampling.images, 0

    def images(self: Sampling, *arguments: object, **options: object) -> Tensor:
        nonlocal batches
        batches += 1
        if batches == 2:
            raise KeyboardInterrupt
        return draw(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Sampling, "images", images)
    grid, folder = run / "samples" / "mine.png", tmp_path / "images"
    with pytest.raises(KeyboardInterrupt):
        sample(run, "--out", grid, "--images_dir", folder, "--num", "8")
    assert sorted((run / "samples").iterdir()) == before
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{i:06d}.png" for i in range(4)]
    assert all(pixels(folder / name).shape == (16, 16, 3) for name in names)
