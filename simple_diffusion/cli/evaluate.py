"""`simple-diffusion evaluate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_diffusion.cli.sampling_options import add_sampling_options, chosen_sampling, positive

if TYPE_CHECKING:
    from accelerate import PartialState

EXAMPLE = """\
examples:
  simple-diffusion evaluate runs/quickstart --num 1000 --reference data/icons_64/validation
  simple-diffusion evaluate pictures --size 64 --reference data/icons_64 --metrics kid recall
  torchrun --nproc_per_node 8 -m -- simple_diffusion evaluate runs/big --num 50000 \\
      --reference data/imagenet_512 --extractor inception --metrics fd kid is

Figures carry the extractor's name (kid_lite0); only the Fréchet distance of Inception features is
called fid. Each score stands beside the floor: one half of the reference against the other half.
`matched` scores as many samples against that same half, so it compares with the floor directly.
The figures are the same on any number of processes, and an interrupted evaluation goes on.
"""

RECORD = "evaluation.json"
ONLY_RUNS = (
    "seed",
    "steps",
    "sampler",
    "spacing",
    "guidance",
    "guidance_interval",
    "precision",
    "batch_size",
    "weights",
    "checkpoint",
    "neighbours",
)


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a run's samples, or any images, against a reference",
        description="Score a run's samples, or any images, against a reference of real images.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run, a folder of images or a shard set")
    add("--reference", type=Path, metavar="SHARDS", help="real images (default: a run's held-out)")
    add("--reference_num", type=positive, help="use so many of them (default: all)")
    add("--num", type=positive, help="samples to draw, or images to take (default: 1000, or all)")
    add(
        "--metrics",
        nargs="+",
        default=["kid", "fd"],
        metavar="METRIC",
        help="fd, kid, mmd, precision, recall, density, coverage, is (default: kid fd)",
    )
    add("--extractor", default="lite0", help="lite0, inception, dinov2 or clip (default: lite0)")
    add("--extractor_weights", type=Path, help="its weights, where they have no usual place")
    add("--by_class", action="store_true", help="give figures of single classes too")
    add(
        "--neighbours",
        type=positive,
        metavar="N",
        help="compare with all training images, and show the N samples nearest to one",
    )
    add("--size", type=positive, help="for images: side of the squares that are compared")
    add("--out", type=Path, help="record of images to write (default: evaluation.json)")
    add("--cache", type=Path, help="folder of reference statistics (default: in ~/.cache)")
    add_sampling_options(parser)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns the exit code."""
    from eval.evaluate.processes import start_processes
    from eval.metrics import check_metrics

    check_metrics(arguments.metrics)
    state = start_processes()
    if not arguments.run.is_dir():
        raise ValueError(f"{arguments.run}: no such folder; give a run, images or a shard set")
    is_run = (arguments.run / "config.yaml").is_file()
    record = _of_run(arguments, state) if is_run else _of_images(arguments, state)
    if state.is_main_process:
        path = arguments.run / RECORD if is_run else arguments.out or Path(RECORD)
        _report(arguments, record, path)
    return 0


def _of_run(arguments: argparse.Namespace, state: "PartialState") -> dict[str, Any]:
    from eval.evaluate.comparison import Reference
    from eval.evaluate.runs import evaluate_run
    from eval.features import open_extractor
    from simple_diffusion.training.data_facts import held_out_path
    from simple_diffusion.training.saved_run import open_run

    for option, remedy in (("size", "a run has its own"), ("out", "it is RUN/evaluation.json")):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is for images, not for runs: {remedy}; leave it out")
    saved = open_run(arguments.run, arguments.weights, arguments.checkpoint)
    root = arguments.reference or held_out_path(saved.config.data)
    if root is None:
        raise ValueError(f"{arguments.run} has no held-out images; give --reference SHARDS")
    reference = Reference(
        root,
        saved.config.data.image_size,
        open_extractor(
            arguments.extractor, weights=arguments.extractor_weights, device=state.device
        ),
        arguments.reference_num,
        arguments.cache,
    )
    return evaluate_run(
        saved,
        arguments.metrics,
        reference,
        num=arguments.num or 1000,
        seed=saved.config.seed if arguments.seed is None else arguments.seed,
        sampling=chosen_sampling(arguments, saved),
        by_class=arguments.by_class,
        neighbours=arguments.neighbours or 0,
        state=state,
    )


def _of_images(arguments: argparse.Namespace, state: "PartialState") -> dict[str, Any]:
    from eval.evaluate.comparison import Reference, write_record
    from eval.evaluate.sets import evaluate_images
    from eval.features import open_extractor

    _refuse_run_options(arguments)
    if arguments.reference is None:
        raise ValueError("--reference SHARDS is needed: what to compare the images with")
    if arguments.size is None:
        raise ValueError("--size is needed: the side of the squares that are compared, in pixels")
    extractor = open_extractor(
        arguments.extractor, weights=arguments.extractor_weights, device=state.device
    )
    record = evaluate_images(
        arguments.run,
        arguments.metrics,
        Reference(
            arguments.reference,
            arguments.size,
            extractor,
            arguments.reference_num,
            arguments.cache,
        ),
        num=arguments.num,
        by_class=arguments.by_class,
        state=state,
    )
    if state.is_main_process:
        write_record(arguments.out or Path(RECORD), record)
    return record


def _refuse_run_options(arguments: argparse.Namespace) -> None:
    for option in ONLY_RUNS:
        if getattr(arguments, option) is not None:
            raise ValueError(
                f"--{option} is for runs, but {arguments.run} is none (it has no config.yaml)"
            )


def _report(arguments: argparse.Namespace, record: dict[str, Any], path: Path) -> None:
    from eval.evaluate.comparison import table

    print(f"{record['samples']['num']} images against {record['reference']['num']} real ones")
    print(table(record, arguments.metrics))
    if "memorisation" in record:
        share = record["memorisation"]["nearer_share"]
        text = (
            "not known, as held-out images are training images" if share is None else f"{share:.1%}"
        )
        print(f"samples nearer to a training image than 99% of held-out images are: {text}")
    print(path)
