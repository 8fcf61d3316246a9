"""`simple-diffusion data`: build, combine, index, verify and look at shard sets."""

import argparse
import re
from typing import Any, TypeAlias

# Heavy imports are inside the functions: `--help` must not wait for torch.

SubParsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: SubParsers) -> None:
    """Adds the verb `data` with its sub-verbs; each sets `func(namespace) -> exit code`."""
    data = _parser(
        subparsers,
        "data",
        "Build, combine, index, verify and look at shard sets.",
        "simple-diffusion data build icons data/icons_64 --size 64",
    )
    verbs = data.add_subparsers(metavar="VERB", required=True)
    build = _parser(
        verbs,
        "build",
        "Make a shard set (WebDataset tars and a manifest) out of images.",
        "simple-diffusion data build folder photos data/photos --size 256",
    )
    sources = build.add_subparsers(metavar="SOURCE", required=True)
    _add_icons(sources)
    _add_folder(sources)
    _add_combine(verbs)
    _add_index(verbs)
    _add_verify(verbs)
    _add_show(verbs)


def _parser(subparsers: SubParsers, name: str, summary: str, example: str) -> Any:
    return subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_icons(sources: SubParsers) -> None:
    parser = _parser(
        sources,
        "icons",
        "Draw vector icons, white on tiles coloured by class (needs the extra 'icons').",
        "simple-diffusion data build icons data/icons_64 --size 64 --validation 0.05",
    )
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument("--size", type=int, required=True, help="side of the images in pixels")
    parser.add_argument(
        "--sets",
        default="material",
        help="comma-separated: material, octicons, fontawesome, simple (default: material)",
    )
    parser.add_argument(
        "--min_class",
        type=int,
        default=10,
        help="icons that must share their first word for it to be a class (default: 10)",
    )
    _add_build_options(parser)
    parser.set_defaults(func=_build_icons)


def _add_folder(sources: SubParsers) -> None:
    parser = _parser(
        sources,
        "folder",
        "Pack a folder of images; the first sub-folder, or a CSV file, gives the class.",
        "simple-diffusion data build folder photos data/photos --size 256 --labels labels.csv",
    )
    parser.add_argument("src", metavar="SRC", help="folder of images, searched recursively")
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument(
        "--size",
        type=int,
        required=True,
        help="images are scaled down to this short side; smaller ones are kept as they are",
    )
    parser.add_argument("--labels", help="CSV file with the columns file,class[,caption]")
    parser.add_argument("--licence", default="not stated", help="note kept in the manifest")
    _add_build_options(parser)
    parser.set_defaults(func=_build_folder)


def _add_build_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the images to hold out into OUT/validation (default: 0)",
    )
    parser.add_argument(
        "--shard_samples", type=int, default=1000, help="images in a shard (default: 1000)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a set that was built otherwise"
    )


def _add_combine(verbs: SubParsers) -> None:
    parser = _parser(
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


def _add_index(verbs: SubParsers) -> None:
    parser = _parser(
        verbs,
        "index",
        "Write the manifest of a folder of WebDataset tars that others made, or that changed.",
        "simple-diffusion data index data/laion",
    )
    parser.add_argument("out", metavar="OUT", help="folder of the tars")
    parser.set_defaults(func=_index)


def _add_verify(verbs: SubParsers) -> None:
    parser = _parser(
        verbs,
        "verify",
        "Check sizes, checksums and counts, and decode every image; exits 1 on damage.",
        "simple-diffusion data verify data/icons_64",
    )
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.set_defaults(func=_verify)


def _add_show(verbs: SubParsers) -> None:
    parser = _parser(
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


def _build_icons(args: argparse.Namespace) -> int:
    from data_pipelines.icons import build_icons

    report = build_icons(
        args.out,
        size=args.size,
        sets=[name.strip() for name in args.sets.split(",")],
        min_class=args.min_class,
        shard_samples=args.shard_samples,
        validation=args.validation,
        overwrite=args.overwrite,
    )
    print(report)
    return 0


def _build_folder(args: argparse.Namespace) -> int:
    from data_pipelines.folder import build_folder

    report = build_folder(
        args.src,
        args.out,
        size=args.size,
        labels=args.labels,
        licence=args.licence,
        shard_samples=args.shard_samples,
        validation=args.validation,
        overwrite=args.overwrite,
    )
    print(report)
    return 0


def _combine(args: argparse.Namespace) -> int:
    from pathlib import Path

    from data_pipelines.combine import Source, combine

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


def _index(args: argparse.Namespace) -> int:
    from data_pipelines.index import index_shards

    print(index_shards(args.out))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from pathlib import Path

    from data_pipelines.build import VALIDATION
    from data_pipelines.manifest import MANIFEST_NAME
    from data_pipelines.verify import verify

    roots = [Path(args.out)]
    if (roots[0] / VALIDATION / MANIFEST_NAME).exists():
        roots.append(roots[0] / VALIDATION)
    reports = [verify(root) for root in roots]
    for report in reports:
        print(report)
    return 0 if all(report.sound for report in reports) else 1


def _show(args: argparse.Namespace) -> int:
    from data_pipelines.contact_sheet import contact_sheet

    drawn = contact_sheet(args.data, args.out, num=args.num, image_size=args.size)
    print(f"{args.out}: {drawn} samples of {args.data}")
    return 0
