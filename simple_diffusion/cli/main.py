"""`simple-diffusion VERB ...`: parse, run the verb, turn errors into one clear message."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from simple_diffusion import __version__

# verb -> module with add_parser(subparsers); modules import what is heavy when they run.
VERBS = ("train", "sample", "evaluate", "ablate", "ema", "export", "plan", "data")


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 found damage, 2 error, 75 requeue, 130 ^C."""
    # GNU OpenMP's threads spin for milliseconds before they sleep, which on a busy CPU slows
    # training several times; never spinning costs a quarter of the speed on an idle one. This is
    # about 50 microseconds. It must be set before torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    arguments, rest = _parser().parse_known_args(words)
    if rest and not getattr(arguments, "takes_overrides", False):
        print(f"error: unknown arguments: {' '.join(rest)}", file=sys.stderr)
        return 2
    arguments.overrides = rest
    try:
        code: int = arguments.func(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simple-diffusion",
        description="Train, sample and export pixel-space image diffusion models.",
        epilog="Each verb has its own --help with an example.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(metavar="VERB", required=True)
    for verb in VERBS:
        importlib.import_module(f"simple_diffusion.cli.{verb}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
