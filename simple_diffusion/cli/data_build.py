"""`simple-diffusion data build SOURCE`: one verb for each kind of source."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from simple_diffusion.cli.data_options import (
    SubParsers,
    add_build_options,
    add_image_options,
    add_stored_options,
    add_verb,
    build_options,
    image_options,
    stored_options,
)

if TYPE_CHECKING:
    from data_pipelines.sources.base import ImageSource

# Heavy imports are inside the functions: `--help` must not wait for torch.

_ICONS_IN_SHARD = 1000  # icons are small: of 1 GB there would be one shard


def add_build(verbs: SubParsers) -> None:
    """Adds the verb `build`."""
    build = add_verb(
        verbs,
        "build",
        "Make a shard set (WebDataset tars, their indices and a manifest) out of images.",
        "simple-diffusion data build folder photos data/photos --size 256 --workers 8",
    )
    sources = build.add_subparsers(metavar="SOURCE", required=True)
    _add_icons(sources)
    _add_folder(sources)
    _add_table(sources)
    _add_hf(sources)
    _add_tars(sources)
    _add_imagenet(sources)


def _add_icons(sources: SubParsers) -> None:
    parser = add_verb(
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
    add_build_options(parser, shard_samples=_ICONS_IN_SHARD)
    parser.set_defaults(func=_icons)


def _add_folder(sources: SubParsers) -> None:
    parser = add_verb(
        sources,
        "folder",
        "Pack a folder of images; the first sub-folder, or a CSV file, gives the class.",
        "simple-diffusion data build folder photos data/photos --size 256 --labels labels.csv",
    )
    parser.add_argument("src", metavar="SRC", help="folder of images, searched recursively")
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument("--labels", help="CSV file with the columns file,class[,caption]")
    _add_licence(parser)
    add_image_options(parser)
    add_build_options(parser)
    parser.set_defaults(func=_folder)


def _add_table(sources: SubParsers) -> None:
    parser = add_verb(
        sources,
        "table",
        "Pack the images that a table (.csv, .tsv, .jsonl or .parquet) lists, one a row.",
        "simple-diffusion data build table photos.csv data/photos --size 512 --validation 0.01 "
        "--split_by photographer",
    )
    parser.add_argument("src", metavar="TABLE", help="the table; .parquet needs an extra")
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument("--root", help="folder of the paths in it (default: the table's own)")
    parser.add_argument(
        "--path_column", default="path", metavar="NAME", help="column of paths (default: path)"
    )
    _add_columns(parser, "class, if there is one", "caption, if there is one")
    parser.add_argument(
        "--allow_absolute", action="store_true", help="take paths that lead out of the folder"
    )
    _add_licence(parser)
    add_image_options(parser)
    add_build_options(parser)
    parser.set_defaults(func=_table)


def _add_hf(sources: SubParsers) -> None:
    parser = add_verb(
        sources,
        "hf",
        "Pack a Hugging Face data set, by name or saved on disk (needs the extra 'hf').",
        "simple-diffusion data build hf photos_saved data/photos --split train --keep_bytes",
    )
    parser.add_argument(
        "src", metavar="DATASET", help="a folder of `save_to_disk`, or what `load_dataset` takes"
    )
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument("--split", metavar="NAME", help="which split, if there are several")
    parser.add_argument("--config", metavar="NAME", help="which configuration, likewise")
    parser.add_argument(
        "--image_column", metavar="NAME", help="column of images (default: the only one)"
    )
    _add_columns(parser, "the only one of class labels", "caption or text, if there is one")
    parser.add_argument(
        "--allow_absolute", action="store_true", help="read image files that the data set names"
    )
    _add_licence(parser)
    add_image_options(parser)
    add_build_options(parser)
    parser.set_defaults(func=_hf)


def _add_tars(sources: SubParsers) -> None:
    parser = add_verb(
        sources,
        "tars",
        "Pack the samples of WebDataset tars anew: others' or our own, filtered or smaller.",
        "simple-diffusion data build tars data/laion data/laion_512 --size 512 --min_side 512 "
        "--drop_duplicates",
    )
    parser.add_argument("src", metavar="SRC", help="folder of the tars")
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument(
        "--licence", default="", help="note kept in the manifest (default: that of SRC's manifest)"
    )
    add_image_options(parser)
    add_build_options(parser)
    parser.set_defaults(func=_tars)


def _add_imagenet(sources: SubParsers) -> None:
    parser = add_verb(
        sources,
        "imagenet",
        "Pack ImageNet as it is distributed: the training classes, or the validation images.",
        "simple-diffusion data build imagenet ILSVRC2012_img_val.tar data/imagenet_val --size 256 "
        "--ground_truth LOC_val_solution.csv",
    )
    parser.add_argument(
        "src", metavar="SRC", help="folder of class folders or of images, or the official tar"
    )
    parser.add_argument("out", metavar="OUT", help="folder of the shard set")
    parser.add_argument(
        "--ground_truth",
        metavar="FILE",
        help="classes of the validation images: LOC_val_solution.csv, or the kit's "
        "ILSVRC2012_validation_ground_truth.txt",
    )
    parser.add_argument(
        "--meta", metavar="FILE", help="what the kit's numbers mean: meta.mat or map_clsloc.txt"
    )
    parser.add_argument(
        "--synsets",
        metavar="FILE",
        help="names of the classes, a line each, such as LOC_synset_mapping.txt",
    )
    add_stored_options(parser)
    add_build_options(parser)
    parser.set_defaults(func=_imagenet)


def _add_licence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--licence", default="not stated", help="note kept in the manifest")


def _add_columns(parser: argparse.ArgumentParser, classes: str, captions: str) -> None:
    for name, default in (("class", classes), ("caption", captions)):
        parser.add_argument(
            f"--{name}_column", metavar="NAME", help=f"column of its {name} (default: {default})"
        )


def _icons(args: argparse.Namespace) -> int:
    from data_pipelines.sources.icons import IconSource

    sets = tuple(name.strip() for name in args.sets.split(","))
    return _build(args, IconSource(args.size, sets, args.min_class))


def _folder(args: argparse.Namespace) -> int:
    from data_pipelines.sources.folder import FolderSource

    source = FolderSource(
        Path(args.src), _path(args.labels), licence=args.licence, **image_options(args)
    )
    return _build(args, source)


def _table(args: argparse.Namespace) -> int:
    from data_pipelines.sources.table import TableSource

    source = TableSource(
        Path(args.src),
        root=_path(args.root),
        path=args.path_column,
        class_=args.class_column,
        caption=args.caption_column,
        allow_absolute=args.allow_absolute,
        licence=args.licence,
        **image_options(args),
    )
    return _build(args, source)


def _hf(args: argparse.Namespace) -> int:
    from data_pipelines.sources.huggingface import HuggingFaceSource

    source = HuggingFaceSource(
        args.src,
        split=args.split,
        config=args.config,
        image=args.image_column,
        class_=args.class_column,
        caption=args.caption_column,
        allow_absolute=args.allow_absolute,
        licence=args.licence,
        **image_options(args),
    )
    return _build(args, source)


def _tars(args: argparse.Namespace) -> int:
    from data_pipelines.sources.tars import TarSource

    return _build(args, TarSource(Path(args.src), licence=args.licence, **image_options(args)))


def _imagenet(args: argparse.Namespace) -> int:
    from data_pipelines.sources.imagenet import ImageNetSource

    source = ImageNetSource(
        Path(args.src),
        ground_truth=_path(args.ground_truth),
        meta=_path(args.meta),
        synsets=_path(args.synsets),
        **stored_options(args),
    )
    return _build(args, source)


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _build(args: argparse.Namespace, source: "ImageSource") -> int:
    from data_pipelines.building.build_set import build_set

    by_group = getattr(args, "split_by", None) is not None
    print(build_set(source, args.out, split_by_group=by_group, **build_options(args)))
    return 0
