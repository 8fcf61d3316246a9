"""What a run remembers of its data, so that sampling and export do not need the data."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipelines.remote.request import shown
from data_pipelines.shard_sets import ShardSets
from data_pipelines.store import is_remote
from simple_diffusion.config_data import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFacts:
    """Facts about a training set, kept in every checkpoint's state.

    Attributes:
        source: where the images came from, for people.
        licence: note on what the images may be used for.
        images: number of images.
        classes: class names in the order of their labels.
        class_counts: number of images of each class.
    """

    source: str
    licence: str
    images: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]

    @classmethod
    def of(cls, sets: ShardSets, num_classes: int) -> "DataFacts":
        """The facts of shard sets; an unconditional model (`num_classes` 0) needs no classes."""
        return cls(
            source=" + ".join(dict.fromkeys(manifest.source for manifest in sets.manifests)),
            licence="; ".join(dict.fromkeys(manifest.licence for manifest in sets.manifests)),
            images=sets.num_samples,
            classes=sets.classes if num_classes else (),
            class_counts=sets.class_counts if num_classes else (),
        )

    def to_state(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DataFacts":
        """Back from JSON values, which are not trusted.

        Raises:
            ValueError: a field is missing or of the wrong type.
        """
        facts: dict[str, Any] = {name: state.get(name) for name in cls.__annotations__}
        for name, kind in {"source": str, "licence": str, "images": int}.items():
            if not isinstance(facts[name], kind):
                raise ValueError(f"{name!r} must be a {kind.__name__}, not {facts[name]!r}")
        names, counts = facts["classes"], facts["class_counts"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("'classes' must be a list of strings")
        if not isinstance(counts, list) or not all(_is_count(count) for count in counts):
            raise ValueError("'class_counts' must be a list of counts")
        if len(names) != len(counts):
            raise ValueError(f"{len(names)} 'classes', but {len(counts)} 'class_counts'")
        return cls(**{**facts, "classes": tuple(names), "class_counts": tuple(counts)})


def held_out_path(data: DataConfig) -> Path | None:
    """The set of held-out images of a config; None if there is none.

    Raises:
        ValueError: it is a URL; held-out images are few, and read again and again.
    """
    if data.validation_path is not None:
        if is_remote(data.validation_path):
            raise ValueError(
                f"data.validation_path is {data.validation_path}; held-out images are read from a "
                "folder: copy the set to this machine and name its folder"
            )
        return Path(data.validation_path)
    if is_remote(data.path):
        logger.warning(
            "%s is a URL, and held-out images are read from a folder: there is no validation; name "
            "a folder as data.validation_path",
            shown(data.path),
        )
        return None
    beside = Path(data.path) / "validation"
    return beside if beside.is_dir() else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
