"""The shard sets that a run trains on: one, or several with weights, as one source of images."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.classes import merged_classes
from data_pipelines.manifest import Manifest
from data_pipelines.order.order import Piece
from data_pipelines.remote.prefetch import Prefetcher
from data_pipelines.remote.request import shown
from data_pipelines.store import CacheSettings, ShardStore, is_remote, open_store


@dataclass(frozen=True)
class WeightedSet:
    """A shard set and how often it is drawn from.

    Attributes:
        root: Its folder or URL.
        weight: Its share of the images, relative to the other sets' weights.
    """

    root: str
    weight: float = 1.0


class ShardSets:
    """Several shard sets with their weights, their classes merged by name.

    Args:
        sets: One or more; the first one's classes keep their labels.
        cache: Where remote shards are kept; not needed for local sets.

    Raises:
        ShardSetError: A set is missing, damaged or empty.
        ValueError: A weight is not positive, a set appears twice, or the classes cannot be merged.
    """

    def __init__(self, sets: Sequence[WeightedSet], cache: CacheSettings | None = None) -> None:
        assert sets
        roots = [one.root for one in sets]
        for one in sets:
            place = shown(one.root) if is_remote(one.root) else one.root
            if not 0.0 < one.weight < float("inf"):
                raise ValueError(f"{place}: its weight is {one.weight}; it must be positive")
            if [root.rstrip("/") for root in roots].count(one.root.rstrip("/")) > 1:
                raise ValueError(f"{place}: mixed in twice; name each shard set once")
        self.stores: tuple[ShardStore, ...] = tuple(open_store(root, cache) for root in roots)
        self.weights = tuple(one.weight for one in sets)
        self.classes = merged_classes([store.root for store in self.stores], self.manifests)
        self.cache = cache

    @classmethod
    def of(cls, root: Path | str) -> "ShardSets":
        """A single local set."""
        return cls([WeightedSet(str(root))])

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """The sets' manifests."""
        return tuple(store.manifest for store in self.stores)

    @property
    def name(self) -> str:
        """The sets' places, for messages."""
        return " + ".join(store.root for store in self.stores)

    @property
    def num_samples(self) -> int:
        """Number of samples in all sets."""
        return sum(manifest.num_samples for manifest in self.manifests)

    @property
    def fingerprint(self) -> str:
        """Which data this is: that of a single set, else a hash of the sets' and their weights."""
        if len(self.stores) == 1:
            return self.manifests[0].fingerprint
        content = [[m.fingerprint for m in self.manifests], list(self.weights)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each set among the images drawn."""
        return tuple(weight / sum(self.weights) for weight in self.weights)

    @property
    def synthetic_share(self) -> float:
        """The share of images made by a model among those drawn."""
        return sum(
            share * manifest.synthetic / manifest.num_samples
            for share, manifest in zip(self.shares, self.manifests, strict=True)
        )

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many of `num_samples` images are of each class when drawn by the weights, rounded.

        A class that any set has samples of counts at least 1. For a single set, its own counts.
        """
        if len(self.stores) == 1:
            return self.manifests[0].class_counts
        expected = dict.fromkeys(self.classes, 0.0)
        for share, manifest in zip(self.shares, self.manifests, strict=True):
            for name, count in zip(manifest.classes, manifest.class_counts, strict=True):
                expected[name] += share * count / manifest.num_samples
        total = self.num_samples
        return tuple(max(1, round(total * each)) if each else 0 for each in expected.values())

    def prefetcher(
        self, pieces: Iterable[Piece], *, ranks_on_node: int, workers: int
    ) -> Callable[[], Prefetcher] | None:
        """What fetches the remote shards of a rank's steps ahead of need; None if all are local.

        Args:
            pieces: The rank's piece of each step; gone through once for every pass.
            ranks_on_node: How many ranks share the cache.
            workers: Processes of each rank that read; 0 if it does so itself.
        """
        remote = [store for store in self.stores if store.bounded]
        if self.cache is None or not remote:
            return None
        # Whoever reads needs room for the one shard that it opens, whatever was fetched ahead.
        largest = max(shard.bytes for store in remote for shard in store.manifest.shards)
        share = max(0, self.cache.max_bytes // ranks_on_node - largest * max(1, workers))
        return lambda: Prefetcher(self.stores, map(_places, pieces), max_bytes=share)


def _places(piece: Piece) -> list[tuple[int, int]]:
    """The distinct (set, shard) of a piece."""
    return list(dict.fromkeys(zip(piece.sets.tolist(), piece.shards.tolist(), strict=True)))


def set_names(roots: Sequence[str]) -> tuple[str, ...]:
    """A short name for each set, all different: the end of its place, numbered where need be."""
    paths = [shown(root).partition("?")[0] if is_remote(root) else root for root in roots]
    ends = [path.rstrip("/").rpartition("/")[2] for path in paths]
    names = [end if ends.count(end) == 1 else f"{end}-{n}" for n, end in enumerate(ends)]
    if len(set(names)) < len(names):  # a number made one of them another's name
        names = [f"{n}-{end}" for n, end in enumerate(ends)]
    return tuple(names)
