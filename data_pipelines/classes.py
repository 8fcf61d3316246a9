"""The classes of several shard sets, as those of one."""

from collections.abc import Sequence

from data_pipelines.manifest import Manifest


def merged_classes(roots: Sequence[str], manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """The class names of all sets, the first one's in front, so that they keep their labels.

    Raises:
        ValueError: The classes of a set are the numbers 0, 1, ..., which are labels, not names,
            and would become other labels.
    """
    merged = tuple(dict.fromkeys(name for manifest in manifests for name in manifest.classes))
    for root, manifest in zip(roots, manifests, strict=True):
        numbers = tuple(map(str, range(len(manifest.classes))))
        if manifest.classes == numbers and merged[: len(numbers)] != numbers:
            raise ValueError(
                f"{root}: its classes are numbers, which would not stay the labels beside "
                f"the classes of {roots[0]}; combine sets whose classes are all numbers, or "
                "give them names and build the set again"
            )
    return merged
