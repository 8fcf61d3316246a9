"""`simple-diffusion data bench`."""

import argparse

from simple_diffusion.cli.data_options import SubParsers
from simple_diffusion.cli.sampling_options import height_and_width

EXAMPLE = """\
example:
  simple-diffusion data bench data/photos --size 256 --workers 0 1 2

The speed of a stage is the most that one thread could give if the others were free. "read" is from
the page cache, where the same images were just before: what a slow disk adds is not in it. "per
CPU-s" is what counts on a busy machine. With as many workers as cores the loader should come near
the cores' number times "all together".
"""


def add_bench(verbs: SubParsers) -> None:
    """Adds the verb `bench`."""
    summary = "Time reading, decoding, resizing and collating, and the loader with workers."
    parser = verbs.add_parser(
        "bench",
        help=summary,
        description=summary,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", metavar="SHARDS", help="folder of the shard set")
    parser.add_argument(
        "--size",
        type=height_and_width,
        default=(256, 256),
        metavar="HxW",
        help="height and width in pixels, or one number (default: 256)",
    )
    parser.add_argument("--num", type=int, default=512, help="images to time (default: 512)")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="*",
        default=[0, 1, 2],
        metavar="N",
        help="numbers of worker processes to time the loader with (default: 0 1 2)",
    )
    parser.set_defaults(func=_bench)


def _bench(args: argparse.Namespace) -> int:
    from data_pipelines.bench import bench

    print(bench(args.data, size=args.size, num=args.num, workers=args.workers))
    return 0
