"""`simple-diffusion ablate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.ablate.executors import Executor
    from eval.ablate.study import Study

EXAMPLE = """\
example:
  simple-diffusion ablate configs/ablations/noise_schedule.yaml --dry-run
  simple-diffusion ablate configs/ablations/noise_schedule.yaml --only schedule=cosine,shifted_32
  simple-diffusion ablate my.yaml --executor slurm --slurm.partition=gpu --slurm.gpus_per_node=1

The cost is shown first. The same command again goes on: finished cells are kept, failed ones are
tried again. Ctrl-C and SIGTERM let the running cells save. Exit codes: 0 all cells finished, 1 some
did not, 2 an error in the study, 75 and 130 stopped.
"""


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "ablate",
        help="run a study: a grid of configs, compared in a report",
        description="Train, sample and score every cell of a study, and write a report.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("study", metavar="STUDY", type=Path, help="a YAML file, see configs/ablations")
    add("--out", type=Path, help="the study's folder (default: runs/ablations/NAME)")
    add("--jobs", type=int, help="cells at once (default: 1; in a Slurm queue 32)")
    add(
        "--only",
        action="append",
        default=[],
        metavar="AXIS=VALUE,VALUE",
        help="run these cells only; may be repeated, and `seed` counts as an axis",
    )
    instead = parser.add_mutually_exclusive_group().add_argument
    instead("--dry-run", action="store_true", help="show the cells and what they cost, and stop")
    instead("--report", action="store_true", help="write the report of what has run, and stop")
    add("--rate", type=float, help="images/s that the baseline trains at, to estimate the time")
    add("--executor", default="local", choices=("local", "slurm"), help="where the cells run")
    parser.set_defaults(func=run, takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Run the study; returns the exit code."""
    from eval.ablate.cells import select
    from eval.ablate.executors import DEFAULT_JOBS
    from eval.ablate.forecast import forecast
    from eval.ablate.study import load_study

    options = _slurm_options(arguments.overrides)
    study = load_study(arguments.study)
    out = arguments.out or Path("runs/ablations") / study.name
    chosen = select(study.cells, study.file.choices, arguments.only)
    if arguments.report:
        if not out.is_dir():
            raise ValueError(f"{out}: nothing of this study has run there yet")
        print(f"look at {_report(study, out)}")
        return 0
    jobs = DEFAULT_JOBS[arguments.executor] if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least 1")
    print(forecast(study, chosen, out, jobs=jobs, rate=arguments.rate), flush=True)
    if arguments.dry_run:
        return 0

    from eval.ablate.driver import run_cells
    from eval.ablate.ready import check_ready
    from simple_diffusion.training.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

    check_ready(chosen)
    executor = _executor(arguments.executor, out, jobs, options)
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.yaml").write_text(study.file.text(), encoding="utf-8")
    received = run_cells(chosen, out, executor)
    report = _report(study, out)
    if received is not None:
        print(f"stopped by {received.name}; the same command goes on. So far: {report}")
        return EXIT_INTERRUPTED if received.name == "SIGINT" else EXIT_REQUEUE
    print(f"look at {report}")
    return _verdict(study, out, {cell.id for cell in chosen})


def _slurm_options(overrides: list[str]) -> dict[str, object]:
    """`--slurm.KEY=VALUE` words; anything else is an error."""
    from simple_diffusion.config_files import parse_overrides

    tree = parse_overrides(overrides)
    options = tree.pop("slurm", {})
    if tree or not isinstance(options, dict):
        unknown = next(iter(tree), "slurm")
        raise ValueError(
            f"unknown argument --{unknown}; a study's configs are set in its file, and Slurm's "
            "options are --slurm.KEY=VALUE"
        )
    return options


def _executor(name: str, out: Path, jobs: int, options: dict[str, object]) -> "Executor":
    from eval.ablate.executors import COMMAND, LocalExecutor
    from eval.ablate.slurm import SlurmExecutor

    if name == "slurm":
        return SlurmExecutor(out, jobs, options, COMMAND)
    if options:
        raise ValueError(f"--slurm.{next(iter(options))}: only with --executor slurm")
    return LocalExecutor(jobs, COMMAND)


def _report(study: "Study", out: Path) -> Path:
    from eval.ablate.collect import collect
    from eval.ablate.report import write_report

    return write_report(collect(study, out), out)


def _verdict(study: "Study", out: Path, chosen: set[str]) -> int:
    """Say which of the cells that should have run did not; the exit code."""
    from eval.ablate.collect import collect
    from eval.ablate.folder import LOG

    wanting = {
        outcome.folder: outcome
        for outcome, cell in zip(collect(study, out).outcomes, study.cells, strict=True)
        if cell.id in chosen and outcome.status != "done"
    }
    for folder, outcome in wanting.items():
        log = f" (see {folder / LOG})" if outcome.status == "failed" else ""
        print(f"{outcome.status}: {outcome.name}: {outcome.error}{log}")
    return 1 if wanting else 0
