"""Verbs of `simple-diffusion data` for sets that exist: combine, split, index, verify, show."""

import argparse
import re

from simple_diffusion.cli.data_options import (
    SubParsers,
    add_making_options,
    add_verb,
    build_options,
)

# Heavy imports are inside the functions: `--help` must not wait for torch.


def add_combine(verbs: SubParsers) -> None:
    """Adds the verb `combine`."""
    parser = add_verb(
        verbs,
        "combine",
        "Make one shard set out of several: images are copied, classes merged by name.",
        "simple-diffusion data combine data/mixed data/icons_64:4000 data/synthetic",
    )
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC[:NUM[:FIRST]]",
        help="shard set, and how many of its samples, from rank FIRST (default: 0) of a shuffled "
        "order on: ranges that do not overlap share no sample (default: all). Held-out parts are "
        "sets of their own and are not copied",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="chooses the shuffled orders (default: 0)"
    )
    parser.add_argument(
        "--shard_samples", type=int, default=1000, help="images in a shard (default: 1000)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a set that was built otherwise"
    )
    parser.set_defaults(func=_combine)


def add_split(verbs: SubParsers) -> None:
    """Adds the verb `split`."""
    parser = add_verb(
        verbs,
        "split",
        "Make a training and a validation set out of one set; samples are copied as they are.",
        "simple-diffusion data split data/photos data/photos_split --field photographer",
    )
    parser.add_argument("src", metavar="SRC", help="shard set; a held-out part is not read")
    parser.add_argument(
        "out", metavar="OUT", help="folder of the training set; the other is OUT/validation"
    )
    parser.add_argument(
        "--validation",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the samples, or of the field's values, to hold out (default: 0.05)",
    )
    parser.add_argument(
        "--field",
        metavar="NAME",
        help="hold out by a hash of this field of the samples' JSON instead of their keys, so "
        "that no value is in both sets; samples without it are not held out",
    )
    add_making_options(parser)
    parser.set_defaults(func=_split)


def add_index(verbs: SubParsers) -> None:
    """Adds the verb `index`."""
    parser = add_verb(
        verbs,
        "index",
        "Write the manifest and indices of WebDataset tars that others made, or that changed.",
        "simple-diffusion data index data/laion --workers 8",
    )
    parser.add_argument("out", metavar="OUT", help="folder of the tars")
    _add_workers(parser)
    parser.set_defaults(func=_index)


def add_verify(verbs: SubParsers) -> None:
    """Adds the verb `verify`."""
    parser = add_verb(
        verbs,
        "verify",
        "Check checksums, indices and counts, and decode every image; exits 1 on damage.",
        "simple-diffusion data verify data/icons_64 --workers 8",
    )
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    _add_workers(parser)
    parser.set_defaults(func=_verify)


def add_show(verbs: SubParsers) -> None:
    """Adds the verb `show`."""
    parser = add_verb(
        verbs,
        "show",
        "Draw a contact sheet of samples with their classes and captions.",
        "simple-diffusion data show data/icons_64 --out sheet.png --num 64",
    )
    parser.add_argument("data", metavar="OUT", help="folder of the shard set")
    parser.add_argument("--out", default="sheet.png", help="image to write (default: sheet.png)")
    parser.add_argument("--num", type=int, default=64, help="number of samples (default: 64)")
    parser.add_argument("--size", type=int, default=128, help="side of each (default: 128)")
    parser.set_defaults(func=_show)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes (default: 1)"
    )


def _combine(args: argparse.Namespace) -> int:
    from pathlib import Path

    from data_pipelines.building.combine import Source, combine

    sources = []
    for word in args.sources:
        match = re.fullmatch(r"(.+?)(?::(\d+)(?::(\d+))?)?", word, re.ASCII | re.DOTALL)
        if match is None:
            raise ValueError(f"{word!r} is not SRC, SRC:NUM or SRC:NUM:FIRST")
        root, num, first = match.groups()
        sources.append(
            Source(Path(root), None if num is None else int(num), int(first or 0), args.seed)
        )
    report = combine(sources, args.out, shard_samples=args.shard_samples, overwrite=args.overwrite)
    print(report)
    return 0


def _split(args: argparse.Namespace) -> int:
    from data_pipelines.building.split import split

    print(split(args.src, args.out, field=args.field, **build_options(args)))
    return 0


def _index(args: argparse.Namespace) -> int:
    from data_pipelines.index import index_shards

    print(index_shards(args.out, workers=args.workers))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from pathlib import Path

    from data_pipelines.building.stream import VALIDATION
    from data_pipelines.manifest import MANIFEST_NAME
    from data_pipelines.verify import verify

    roots = [Path(args.out)]
    if (roots[0] / VALIDATION / MANIFEST_NAME).exists():
        roots.append(roots[0] / VALIDATION)
    reports = [verify(root, workers=args.workers) for root in roots]
    for report in reports:
        print(report)
    return 0 if all(report.sound for report in reports) else 1


def _show(args: argparse.Namespace) -> int:
    from data_pipelines.contact_sheet import contact_sheet

    drawn = contact_sheet(args.data, args.out, num=args.num, image_size=args.size)
    print(f"{args.out}: {drawn} samples of {args.data}")
    return 0
