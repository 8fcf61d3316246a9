"""`simple-diffusion sample`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_diffusion.cli.sampling_options import (
    add_sampling_options,
    chosen_sampling,
    chosen_size,
    height_and_width,
    positive,
)

if TYPE_CHECKING:
    from data_pipelines.building.stream import BuildReport
    from simple_diffusion.config import SamplingConfig
    from simple_diffusion.training.saved_run import SavedRun

EXAMPLE = """\
example:
  simple-diffusion sample runs/quickstart --out grid.png --num 64 --guidance 2
  simple-diffusion sample runs/quickstart --classes arrow battery --num 16 --images_dir pictures
  simple-diffusion sample runs/quickstart --size 64x96 --out wide.png
  simple-diffusion sample runs/quickstart --shards data/synthetic --num 10000

Image number i depends on the seed, i and its class alone, so the defaults draw the pictures of the
grids made during training. A shard set has the classes of the training data, its samples are
marked as synthetic, and it is reused if it is there and complete. Images of another size are drawn
along the noise schedule of the training size; the further their area is from that of the training
images, the worse they get. What is not given is as in the `sampling` section of the run's config.
"""


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "sample",
        help="draw images with a run's network",
        description="Draw images with a run's network: a grid, a file for each, or a shard set.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of a run")
    add("--out", type=Path, help="grid to write, a PNG (default: RUN/samples/sample.png)")
    add("--images_dir", type=Path, help="write single PNGs there; then --out has no default")
    add("--shards", type=Path, metavar="OUT", help="write a shard set there, and nothing else")
    add("--overwrite", action="store_true", help="replace a shard set of other images")
    add("--num", type=positive, default=64, help="number of images (default: 64)")
    add("--columns", type=positive, help="images in a row of the grid (default: about square)")
    add(
        "--size",
        type=height_and_width,
        metavar="HxW",
        help="height and width in pixels, or one number (default: as in training)",
    )
    add(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="names or numbers, taken in turn (default: drawn as often as in the training data)",
    )
    add_sampling_options(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw; returns the exit code."""
    from simple_diffusion.training.saved_run import open_run

    _check_shards(arguments)
    saved = open_run(arguments.run, arguments.weights, arguments.checkpoint)
    sampling, size = chosen_sampling(arguments, saved), chosen_size(arguments, saved)
    seed = saved.config.seed if arguments.seed is None else arguments.seed
    if arguments.shards is not None:
        written: list[object] = [_draw_shards(arguments, saved, sampling, seed, size)]
    else:
        written = list(_draw_pictures(arguments, saved, sampling, seed, size))
    guidance = f", guidance {sampling.guidance:g}" if saved.config.model.num_classes else ""
    shape = "" if size is None else f" of {size[0]}x{size[1]}"
    print(
        f"{arguments.num} images{shape} by {saved.weights} after {saved.images_seen} images of "
        f"training: {sampling.sampler}, {sampling.steps} steps{guidance}, seed {seed}"
    )
    for one in written:
        print(one)
    return 0


def _check_shards(arguments: argparse.Namespace) -> None:
    if arguments.shards is None:
        if arguments.overwrite:
            raise ValueError("--overwrite is for a shard set; add --shards OUT, or leave it out")
        return
    for option in ("out", "images_dir", "columns"):
        if getattr(arguments, option) is not None:
            raise ValueError(
                f"--{option} does not go with --shards, which draws nothing if the set is there "
                "already; leave it out, and look at the set with `simple-diffusion data show "
                f"{arguments.shards}`"
            )


def _draw_shards(
    arguments: argparse.Namespace,
    saved: "SavedRun",
    sampling: "SamplingConfig",
    seed: int,
    size: tuple[int, int] | None,
) -> "BuildReport":
    from simple_diffusion.training.sample_shards import sample_shards

    return sample_shards(
        saved,
        sampling,
        arguments.shards,
        num=arguments.num,
        seed=seed,
        classes=arguments.classes,
        size=size,
        overwrite=arguments.overwrite,
    )


def _draw_pictures(
    arguments: argparse.Namespace,
    saved: "SavedRun",
    sampling: "SamplingConfig",
    seed: int,
    size: tuple[int, int] | None,
) -> list[Path]:
    """Draw the grid and the single files that are asked for; what was written."""
    import torch

    from simple_diffusion.training.grids import save_grid
    from simple_diffusion.training.sample_shards import draw_batches, image_labels

    labels = image_labels(saved, arguments.classes, arguments.num, seed)
    folder, grid = arguments.images_dir, _check_outputs(arguments)
    kept = []
    for indices, images in draw_batches(saved, sampling, labels, arguments.num, seed, size=size):
        if folder is not None:
            for index, image in zip(indices, images, strict=True):
                save_grid(image[None], folder / f"{index:06d}.png")
        if grid is not None:
            kept.append(images)
    if grid is not None:
        save_grid(torch.cat(kept), grid, arguments.columns)
    return [path for path in (grid, folder) if path is not None]


def _check_outputs(arguments: argparse.Namespace) -> Path | None:
    """The grid to write, if any. What cannot be written is an error now, not after the work."""
    folder, grid = arguments.images_dir, arguments.out
    if grid is None and folder is None:
        grid = arguments.run / "samples" / "sample.png"
    if grid is not None:
        if grid.suffix.lower() != ".png" or grid.is_dir():
            raise ValueError(f"--out {grid}: must be a file named *.png")
        grid.parent.mkdir(parents=True, exist_ok=True)
    elif arguments.columns is not None:
        raise ValueError("--columns is for the grid; add --out grid.png, or leave it out")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ValueError(f"--images_dir {folder}: is not empty; choose or make another")
    return grid
