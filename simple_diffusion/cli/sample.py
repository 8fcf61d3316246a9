"""`simple-diffusion sample`."""

import argparse
import difflib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from simple_diffusion.config import SamplingConfig
    from simple_diffusion.training.saved_run import SavedRun

EXAMPLE = """\
example:
  simple-diffusion sample runs/quickstart --out grid.png --num 64 --guidance 2
  simple-diffusion sample runs/quickstart --classes arrow battery --num 16 --images_dir pictures

Image number i depends on the seed, i and its class alone, so the defaults draw the pictures of the
grids made during training. What is not given is as in the `sampling` section of the run's config.
"""


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "sample",
        help="draw images with a run's network",
        description="Draw images with a run's network: a grid, or a file for each.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of a run")
    add("--out", type=Path, help="grid to write, a PNG (default: RUN/samples/sample.png)")
    add("--images_dir", type=Path, help="write single PNGs there; then --out has no default")
    add("--num", type=positive, default=64, help="number of images (default: 64)")
    add("--columns", type=positive, help="images in a row of the grid (default: about square)")
    add(
        "--classes",
        nargs="+",
        metavar="CLASS",
        help="names or numbers, taken in turn (default: drawn as often as in the training data)",
    )
    add("--seed", type=int, help="names the set of images (default: the run's)")
    add("--steps", type=positive, help="sampling steps")
    add("--sampler", help="ddpm, ddim, euler, heun or dpm++2m")
    add("--spacing", help="in what the steps are even: t, logsnr or tau")
    add("--guidance", type=float, help="classifier-free guidance; 1 is the conditional model")
    add(
        "--guidance_interval",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="the λ between which guidance applies (-99 and 99 are beyond every schedule)",
    )
    add("--precision", choices=("fp32", "bf16"), help="of the network")
    add("--batch_size", type=positive, help="images that the network sees at once")
    add("--weights", help="'model', or an average (default: the run's first average)")
    add(
        "--checkpoint", type=int, metavar="N", help="the one at N images seen (default: the newest)"
    )
    parser.set_defaults(func=run)


def positive(text: str) -> int:
    """An integer above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Draw; returns the exit code."""
    from simple_diffusion.training.saved_run import open_run

    saved = open_run(arguments.run, arguments.weights, arguments.checkpoint)
    sampling = _sampling(arguments, saved)
    seed = saved.config.seed if arguments.seed is None else arguments.seed
    labels = _labels(arguments.classes, arguments.num, seed, saved)
    grid = _check_outputs(arguments)
    images = _draw(saved, sampling, labels, arguments.num, seed, arguments.images_dir, grid)
    if grid is not None:
        import torch

        from simple_diffusion.training.grids import save_grid

        save_grid(torch.cat(images), grid, arguments.columns)
    guidance = f", guidance {sampling.guidance:g}" if labels is not None else ""
    print(
        f"{arguments.num} images by {saved.weights} after {saved.images_seen} images of training: "
        f"{sampling.sampler}, {sampling.steps} steps{guidance}, seed {seed}"
    )
    for path in filter(None, (grid, arguments.images_dir)):
        print(path)
    return 0


def _sampling(arguments: argparse.Namespace, saved: "SavedRun") -> "SamplingConfig":
    """The run's sampling, with what the command line says instead."""
    from simple_diffusion.diffusion.samplers import SAMPLERS, SPACINGS

    _one_of("--sampler", arguments.sampler, SAMPLERS)
    _one_of("--spacing", arguments.spacing, SPACINGS)
    if not saved.config.model.num_classes and arguments.guidance not in (None, 1.0):
        raise ValueError(
            f"--guidance {arguments.guidance:g}: {arguments.run} is an unconditional model, which "
            "has nothing to guide towards; leave it out"
        )
    names = ("sampler", "steps", "spacing", "guidance", "precision", "batch_size")
    given = {name: getattr(arguments, name) for name in names}
    if arguments.guidance_interval is not None:
        low, high = arguments.guidance_interval
        if not low <= high:
            raise ValueError(f"--guidance_interval {low:g} {high:g}: LO must not exceed HI")
        given["guidance_interval"] = (low, high)
    return replace(saved.config.sampling, **{k: v for k, v in given.items() if v is not None})


def _one_of(option: str, value: str | None, choices: Iterable[str]) -> None:
    if value is None or value in choices:
        return
    close = difflib.get_close_matches(value, list(choices), 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"{option} {value!r} is not one of {', '.join(choices)}{hint}")


def _labels(classes: list[str] | None, num: int, seed: int, saved: "SavedRun") -> "Tensor | None":
    """One label for each image; None for an unconditional network."""
    import torch

    from simple_diffusion.models.labels import class_label
    from simple_diffusion.training.grids import grid_labels

    room = saved.config.model.num_classes
    if classes is None:
        return grid_labels(seed, range(num), saved.data.class_counts, room or None)
    labels = [class_label(one, saved.data.classes, room) for one in classes]
    return torch.tensor([labels[i % len(labels)] for i in range(num)])


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


def _draw(
    saved: "SavedRun",
    sampling: "SamplingConfig",
    labels: "Tensor | None",
    num: int,
    seed: int,
    folder: Path | None,
    grid: Path | None,
) -> "list[Tensor]":
    """Draw batch by batch, writing single files on the way; the batches, if a grid needs them."""
    import torch
    from tqdm import tqdm

    from simple_diffusion.training.assemble import make_sampling, sample_settings
    from simple_diffusion.training.grids import save_grid

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = saved.network(device)
    drawer = make_sampling(saved.config, network, device, sample_settings(sampling))
    starts = range(0, num, sampling.batch_size)
    kept = []
    with tqdm(total=len(starts) * sampling.steps, desc="sampling", unit="step") as bar:
        for start in starts:
            indices = range(start, min(start + sampling.batch_size, num))
            part = None if labels is None else labels[indices.start : indices.stop]
            images = drawer.images(
                network, indices, part, seed=seed, on_step=lambda _: bar.update()
            ).cpu()
            if folder is not None:
                for index, image in zip(indices, images, strict=True):
                    save_grid(image[None], folder / f"{index:06d}.png")
            if grid is not None:
                kept.append(images)
    return kept
