"""`simple-diffusion ema`."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_diffusion.cli.sampling_options import positive

if TYPE_CHECKING:
    from simple_diffusion.config import RunConfig
    from simple_diffusion.training.ema_sweep import Sweep

EXAMPLE = """\
examples:
  simple-diffusion ema runs/quickstart --sweep 0.03:0.20:8
  simple-diffusion ema runs/quickstart --length 0.05,0.075
  simple-diffusion sample runs/quickstart --weights ema_0.075

The run must have kept snapshots of at least one average, better two (ema.snapshot_images). A length
is the width of the averaging as a share of training. Ones from 0.03 to 0.20 can be rebuilt well.
"""

SWEEP, PICTURE = "ema_sweep.json", "ema_sweep.png"
_NUMBER = r"\d*\.?\d+"
# Above this distance of the weightings, weights are off by a percent or so of their way to the end.
POOR_FIT = 0.05


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "ema",
        help="rebuild averages of other lengths from a run's snapshots",
        description="Rebuild averages of the weights that were not tracked in training, or find "
        "the length with the lowest validation loss.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of a run")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--length",
        type=lengths_listed,
        metavar="L,...",
        help="rebuild these, for --weights of sample, evaluate and export",
    )
    what.add_argument(
        "--sweep",
        type=lengths_between,
        metavar="LO:HI:N",
        help="measure the validation loss of N lengths from LO to HI",
    )
    add(
        "--images",
        type=positive,
        metavar="N",
        help="where in training the averages end: a snapshot at N images seen (default: the last)",
    )
    add(
        "--at_once",
        type=positive,
        default=4,
        metavar="N",
        help="how many a sweep rebuilds in one reading; each takes the memory of one copy of the "
        "weights (default: 4)",
    )
    parser.set_defaults(func=run)


def lengths_listed(text: str) -> tuple[float, ...]:
    """``L,L,...``, for argparse."""
    if not re.fullmatch(rf"{_NUMBER}(,{_NUMBER})*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be lengths such as 0.05,0.075, not {text!r}")
    return _checked([float(word) for word in text.split(",")])


def lengths_between(text: str) -> tuple[float, ...]:
    """``LO:HI:N``: N lengths evenly from LO to HI, for argparse."""
    match = re.fullmatch(rf"({_NUMBER}):({_NUMBER}):(\d{{1,3}})", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be LO:HI:N such as 0.03:0.20:8, not {text!r}")
    low, high, number = float(match[1]), float(match[2]), int(match[3])
    if not low < high or number < 2:
        raise argparse.ArgumentTypeError(f"LO must be below HI, and N at least 2, not {text!r}")
    return _checked([low + (high - low) * n / (number - 1) for n in range(number)])


def run(arguments: argparse.Namespace) -> int:
    """Rebuild or measure; returns the exit code."""
    from simple_diffusion.training.run_folder import read_run_config

    # The folder may have been moved since it was trained.
    config = replace(read_run_config(arguments.run), run_dir=str(arguments.run))
    if arguments.length is not None:
        _rebuild(config, arguments)
    else:
        _sweep(config, arguments)
    return 0


def _rebuild(config: "RunConfig", arguments: argparse.Namespace) -> None:
    from simple_diffusion.training.posthoc import posthoc_root, reconstruct
    from simple_diffusion.training.saved_run import open_run
    from simple_diffusion.training.state import CheckpointStore

    data = open_run(arguments.run, "model").data
    for name, average in reconstruct(config, arguments.length, arguments.images).items():
        facts = {
            "length": average.length,
            "profile_error": average.profile_error,
            "snapshots": average.snapshots,
        }
        state = {"images_seen": average.images_seen, "data": data.to_state(), "posthoc": facts}
        store = CheckpointStore(posthoc_root(config, name), keep=None)
        store.save(average.images_seen, {name: average.tensors}, state)
        store.wait()
        print(
            f"{name} at image {average.images_seen}, from {average.snapshots} snapshots: weighting "
            f"within {average.profile_error:.1e} of the wanted one{_remark(average.profile_error)}"
        )
        print(f"  {store.root}; use it by --weights {name}{_at(config, name, average.images_seen)}")


def _at(config: "RunConfig", name: str, images_seen: int) -> str:
    """What else `--weights` needs: an average that training tracked is taken from checkpoints."""
    from simple_diffusion.training.ema import ema_name

    tracked = name in map(ema_name, config.ema.lengths)
    return f" --checkpoint {images_seen} (or the run's own)" if tracked else ""


def _sweep(config: "RunConfig", arguments: argparse.Namespace) -> None:
    import torch

    from eval.sweep_chart import sweep_picture
    from simple_diffusion.training.ema_sweep import sweep_lengths

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sweep = sweep_lengths(
        config, arguments.sweep, device, images=arguments.images, at_once=arguments.at_once
    )
    sweep.write(arguments.run / SWEEP)
    lengths = [one.length for one in sweep.measured]
    picture = sweep_picture(lengths, [one.mean for one in sweep.measured])
    (arguments.run / PICTURE).write_bytes(picture)
    print(_table(sweep))
    best = sweep.best
    print(f"best: {best.weights}, at image {sweep.images_seen}, on {sweep.images} held-out images")
    if best.length in (lengths[0], lengths[-1]):
        print("  it is at the end of the range: a wider one may hold a better length")
    print(f"{arguments.run / SWEEP}, {arguments.run / PICTURE}")


def _table(sweep: "Sweep") -> str:
    lines = ["length  eps-MSE"]
    for one in sweep.measured:
        mark = "  *" if one is sweep.best else ""
        lines.append(f" {one.length:.3f}  {one.mean:.5f}{mark}{_remark(one.profile_error)}")
    return "\n".join(lines)


def _remark(profile_error: float) -> str:
    if profile_error <= POOR_FIT:
        return ""
    return f"  (poor fit, {profile_error:.0%}: more snapshots or another tracked length would help)"


def _checked(lengths: list[float]) -> tuple[float, ...]:
    for length in lengths:
        if not 0.0 < length < 0.28:
            raise argparse.ArgumentTypeError(f"length {length:g} must lie in (0, 0.28)")
    if len({f"{length:.3f}" for length in lengths}) < len(lengths):
        raise argparse.ArgumentTypeError("lengths must differ in the first three decimals")
    return tuple(lengths)
