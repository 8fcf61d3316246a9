"""`simple-diffusion data`: build, combine, split, index, verify, time and look at shard sets."""

from simple_diffusion.cli.data_bench import add_bench
from simple_diffusion.cli.data_build import add_build
from simple_diffusion.cli.data_options import SubParsers, add_verb
from simple_diffusion.cli.data_sets import (
    add_combine,
    add_index,
    add_show,
    add_split,
    add_verify,
)


def add_parser(subparsers: SubParsers) -> None:
    """Adds the verb `data` with its sub-verbs; each sets `func(namespace) -> exit code`."""
    data = add_verb(
        subparsers,
        "data",
        "Build, combine, split, index, verify, time and look at shard sets.",
        "simple-diffusion data build icons data/icons_64 --size 64",
    )
    verbs = data.add_subparsers(metavar="VERB", required=True)
    add_build(verbs)
    add_combine(verbs)
    add_split(verbs)
    add_index(verbs)
    add_verify(verbs)
    add_show(verbs)
    add_bench(verbs)
