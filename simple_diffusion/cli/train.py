"""`simple-diffusion train`."""

import argparse
import os
import sys
from pathlib import Path
from signal import Signals
from typing import Any

EXAMPLE = """\
example:
  simple-diffusion train configs/quickstart.yaml --run_dir runs/mine --optim.lr=5e-4
  torchrun --nproc_per_node 8 -m simple_diffusion train configs/icons_512.yaml

Every key of the config can be overridden as --section.key=value. The same command again resumes.
Ctrl-C, SIGTERM and SIGUSR1 save first; the exit code is 130 for Ctrl-C and 75 for the others and
for a lost process, on which schedulers should requeue. Under torchrun the code is torchrun's own;
docker/slurm_train.sh starts the processes itself.
"""


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "train",
        help="train a model, or go on with a run",
        description="Train a model from a config, or go on with the run in its folder.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", type=Path, help="a YAML file, for example configs/quickstart.yaml"
    )
    parser.add_argument("--run_dir", help="the run's folder, instead of the config's")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the plan, and stop"
    )
    parser.set_defaults(func=run, takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    from simple_diffusion.config_files import dump_config, load_config
    from simple_diffusion.training.run_folder import CONFIG, read_run_config

    overrides = list(arguments.overrides)
    if arguments.run_dir is not None:
        overrides.append(f"--run_dir={arguments.run_dir}")
    config = load_config(arguments.config, overrides)
    if (Path(config.run_dir) / CONFIG).is_file():  # a run goes on in the precision it began in
        begun = read_run_config(Path(config.run_dir)).train.precision
        config = load_config(arguments.config, overrides, auto=begun)
    if arguments.dry_run:
        from simple_diffusion.plan import make_plan

        print(dump_config(config))
        print(make_plan(config).text())
        return 0

    from simple_diffusion.training.assemble import assemble
    from simple_diffusion.training.signals import EXIT_REQUEUE
    from simple_diffusion.training.trainer import PeerLostError

    trainer = assemble(config)
    try:
        received = trainer.run().received
    except PeerLostError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_REQUEUE)  # an orderly end would wait for the lost process
    trainer.accelerator.end_training()
    if trainer.accelerator.is_main_process:
        _say_how_it_ended(received, Path(config.run_dir), trainer.images_seen)
    return _exit_code(received)


def _say_how_it_ended(received: Signals | None, run_dir: Path, seen: int) -> None:
    if received is None:
        print(f"done: {seen} images; look at {run_dir / 'report.html'}")
        print(f"      and {run_dir / 'samples' / 'final.png'}")
    else:
        print(f"stopped by {received.name} at image {seen}, saved; the same command resumes")


def _exit_code(received: Signals | None) -> int:
    from simple_diffusion.training.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

    if received is None:
        return 0
    return EXIT_INTERRUPTED if received.name == "SIGINT" else EXIT_REQUEUE
