"""The options of `sample` and `evaluate` that say how images are drawn."""

import argparse
import difflib
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simple_diffusion.config import SamplingConfig
    from simple_diffusion.training.saved_run import SavedRun


def positive(text: str) -> int:
    """An integer above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def height_and_width(text: str) -> tuple[int, int]:
    """``HxW``, or ``N`` for a square: (height, width), for argparse."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be HxW or N in pixels, such as 64x96, not {text!r}")
    return positive(match[1]), positive(match[2] or match[1])


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add them; what is not given is as in the `sampling` section of the run's config."""
    add = parser.add_argument
    add("--seed", type=int, help="names the set of images (default: the run's)")
    add("--steps", type=positive, help="sampling steps")
    add("--sampler", help="ddpm, ddim, euler, heun, dpm++2m, or few_step for runs trained for it")
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


def chosen_sampling(arguments: argparse.Namespace, saved: "SavedRun") -> "SamplingConfig":
    """The run's sampling, with what the command line says instead.

    Raises:
        ValueError: an option that this run has no use for, or an unknown name.
    """
    from simple_diffusion.config_few_step import StepsConfig
    from simple_diffusion.diffusion.few_step_sampler import FEW_STEP
    from simple_diffusion.diffusion.samplers import SAMPLERS
    from simple_diffusion.diffusion.spacing import SPACINGS

    _one_of("--sampler", arguments.sampler, (*SAMPLERS, FEW_STEP))
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
    trained = saved.config.few_step
    if arguments.sampler == FEW_STEP and isinstance(trained, StepsConfig):
        for name in ("spacing", "guidance"):
            given[name] = getattr(trained, name) if given[name] is None else given[name]
    chosen = {name: value for name, value in given.items() if value is not None}
    sampling: SamplingConfig = replace(saved.config.sampling, **chosen)
    # refuses what the run's training does not allow; the grids of training are another matter
    grids = replace(saved.config.grids, steps=sampling.steps)
    replace(saved.config, sampling=sampling, grids=grids)
    return sampling


def chosen_size(arguments: argparse.Namespace, saved: "SavedRun") -> tuple[int, int] | None:
    """(height, width) of the images to draw; None for the squares that the run was trained on.

    Raises:
        ValueError: the network cannot draw images of this size.
    """
    side: int = saved.config.data.image_size
    size: tuple[int, int] | None = arguments.size
    if size is None or size == (side, side):
        return None
    import torch

    from simple_diffusion.config import build_network

    with torch.device("meta"):
        multiple = build_network(saved.config.model, side).multiple
    if any(length % multiple for length in size):
        near = [max(1, round(length / multiple)) * multiple for length in size]
        raise ValueError(
            f"--size {size[0]}x{size[1]}: height and width must be divisible by {multiple} for the "
            f"network of {arguments.run}; the nearest size is {near[0]}x{near[1]}"
        )
    return size


def _one_of(option: str, value: str | None, choices: Iterable[str]) -> None:
    if value is None or value in choices:
        return
    close = difflib.get_close_matches(value, list(choices), 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"{option} {value!r} is not one of {', '.join(choices)}{hint}")
