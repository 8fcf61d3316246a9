"""Options that several verbs of `simple-diffusion data` share, and what they mean for the library.

Heavy imports are inside the functions: `--help` must not wait for torch.
"""

import argparse
import re
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from data_pipelines.sources.storage import Filters, Storage

SubParsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_Limits: TypeAlias = dict[str, tuple[type, str, str]]
_SIZE_LIMITS: _Limits = {
    "min_side": (int, "PIXELS", "leave out images whose short side is less than this"),
    "max_side": (int, "PIXELS", "leave out images whose long side is more than this"),
    "min_aspect": (float, "RATIO", "leave out images whose width / height is less than this"),
    "max_aspect": (float, "RATIO", "leave out images whose width / height is more than this"),
}
_CAPTION_LIMITS: _Limits = {
    "min_caption": (int, "LENGTH", "leave out images whose caption has fewer characters"),
    "max_caption": (int, "LENGTH", "leave out images whose caption has more characters"),
}


def add_verb(subparsers: SubParsers, name: str, summary: str, example: str) -> Any:
    """Adds a verb's parser, with an example."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_build_options(parser: Any, *, shard_samples: int | None = None) -> None:
    """How a set is cut into shards and by whom; with the number of samples that is the default."""
    parser.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the images to hold out into OUT/validation, by a hash of their keys "
        "(default: 0)",
    )
    add_making_options(parser, shard_samples=shard_samples)


def add_making_options(parser: Any, *, shard_samples: int | None = None) -> None:
    """As `add_build_options`, but for the held-out share."""
    size = parser.add_argument_group("shards").add_mutually_exclusive_group()
    size.add_argument(
        "--shard_bytes",
        type=int,
        metavar="BYTES",
        help="about how large a shard is" + ("" if shard_samples else " (default: 1000000000)"),
    )
    size.add_argument(
        "--shard_samples",
        type=int,
        metavar="N",
        help="listed images of a shard" + (f" (default: {shard_samples})" if shard_samples else ""),
    )
    work = parser.add_argument_group(
        "work", "A build that was interrupted goes on when the same command is given again."
    )
    work.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes, or Slurm jobs at once; the set does not depend on it (default: 1)",
    )
    work.add_argument(
        "--executor",
        choices=("local", "slurm"),
        default="local",
        help="where shards are made: processes here, or jobs of a Slurm queue on a shared disk "
        "(needs the extra 'slurm'; default: local)",
    )
    work.add_argument(
        "--slurm",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="options of the jobs, such as partition=cpu cpus_per_task=8 timeout_min=120; each "
        "job runs a process on each of its cores",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a set that was built otherwise"
    )
    parser.set_defaults(default_shard_samples=shard_samples)


def build_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `build_set` that these options stand for."""
    options: dict[str, Any] = {
        "validation": args.validation,
        "workers": args.workers,
        "executor": args.executor,
        "slurm_options": _pairs(args.slurm),
        "overwrite": args.overwrite,
    }
    if args.shard_bytes is not None:
        options["shard_bytes"] = args.shard_bytes
    else:
        given = args.shard_samples is not None
        options["shard_samples"] = args.shard_samples if given else args.default_shard_samples
    return options


def add_image_options(parser: Any) -> None:
    """How images that exist are stored, which of them, and what they are split by."""
    wanted = add_stored_options(parser)
    _add_limits(wanted, _CAPTION_LIMITS)
    wanted.add_argument(
        "--drop_duplicates",
        action="store_true",
        help="leave out images of the same bytes as an earlier one",
    )
    parser.add_argument(
        "--split_by",
        metavar="FIELD",
        help="hold out by a hash of this field's values instead of the keys, so that no value (a "
        "photographer, say) is in both parts; images without it are not held out",
    )


def add_stored_options(parser: Any) -> Any:
    """How images that exist are stored, and which of them by their size; the latter's group."""
    stored = parser.add_argument_group("stored images")
    stored.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="scale images down to this short side and encode them again; smaller ones keep their "
        "bytes",
    )
    stored.add_argument(
        "--keep_bytes", action="store_true", help="store the images' own bytes, at any size"
    )
    stored.add_argument(
        "--format",
        choices=("same", "jpg", "webp", "png"),
        help="encoding; same (default): JPEG stays JPEG, what else is scaled becomes PNG",
    )
    stored.add_argument(
        "--quality", type=int, help="of images encoded as JPEG or WebP, 1 to 100 (default: 95)"
    )
    wanted = parser.add_argument_group("images left out")
    _add_limits(wanted, _SIZE_LIMITS)
    return wanted


def image_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a source that `add_image_options` stands for."""
    shared = {"group": args.split_by, "drop_duplicates": args.drop_duplicates}
    return {**stored_options(args), **shared}


def stored_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a source that `add_stored_options` stands for."""
    return {"storage": _storage(args), "filters": _filters(args)}


def _add_limits(group: Any, limits: _Limits) -> None:
    for name, (kind, metavar, text) in limits.items():
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)


def _storage(args: argparse.Namespace) -> "Storage":
    from data_pipelines.sources.storage import Storage

    if args.size is None and args.format is None and not args.keep_bytes:
        raise ValueError("say how images are stored: --size PIXELS, --keep_bytes or --format")
    contradicting = [n for n in ("size", "format", "quality") if getattr(args, n) is not None]
    if args.keep_bytes and contradicting:
        raise ValueError(f"--keep_bytes and --{contradicting[0]} exclude each other")
    given = {name: getattr(args, name) for name in contradicting}
    return Storage(**given)


def _filters(args: argparse.Namespace) -> "Filters":
    from data_pipelines.sources.storage import Filters

    names = (*_SIZE_LIMITS, *_CAPTION_LIMITS)
    return Filters(**{name: getattr(args, name, None) for name in names})


def _pairs(words: list[str]) -> dict[str, str | int]:
    """KEY=VALUE words; whole numbers become numbers."""
    pairs: dict[str, str | int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[a-z_]+", key):
            raise ValueError(f"--slurm {word!r}: must be KEY=VALUE, such as partition=cpu")
        if key in pairs:
            raise ValueError(f"--slurm {key} is given twice")
        pairs[key] = int(value) if re.fullmatch(r"\d+", value, re.ASCII) else value
    return pairs
