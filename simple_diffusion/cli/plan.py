"""`simple-diffusion plan`."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """\
example:
  simple-diffusion plan configs/icons_512.yaml --train.micro_batch_size=8 --hours 24

Nothing is trained and nothing of the model's size is allocated: a model larger than this machine
can be planned on it. Every key of the config can be overridden as --section.key=value.
"""


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "plan",
        help="parameters, FLOPs, memory and speed that a config asks for",
        description="Print what a run would need: parameters, FLOPs of an image, memory by part, "
        "and the speed that ends it in time.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", type=Path, help="a YAML file, for example configs/quickstart.yaml"
    )
    parser.add_argument("--hours", type=float, help="the time in which the run should end")
    parser.set_defaults(func=run, takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; returns the exit code."""
    from simple_diffusion.config_files import load_config
    from simple_diffusion.plan import make_plan

    config = load_config(arguments.config, arguments.overrides)
    print(make_plan(config).text(arguments.hours))
    return 0
