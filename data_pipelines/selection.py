"""Which samples of a set there are to choose from: all of them, or those of one aspect bucket."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipelines.aspects import MAX_BIN, aspect_bins, read_aspect_counts
from data_pipelines.manifest import Manifest, Shard, ShardSetError
from data_pipelines.shards import ShardReader

_KEPT = 512  # shards whose samples' buckets are remembered


class Selection:
    """Counts and numbers the samples of a set, by bucket where there are any.

    Args:
        manifest: The set's.
        bucket_of_bin: Bucket of each aspect bin from -MAX_BIN to MAX_BIN; None without buckets.
        root: Where the set is, for messages.
        buckets: Number of buckets, with and without samples; None without any.

    Raises:
        ShardSetError: There are buckets, but the manifest does not know the images' sizes.
    """

    def __init__(
        self,
        manifest: Manifest,
        bucket_of_bin: NDArray[np.int64] | None,
        root: str,
        buckets: int | None = None,
    ) -> None:
        self._root, self._bucket_of_bin = root, bucket_of_bin
        self.sizes = [np.array([s.samples for s in manifest.shards], dtype=np.int64)]
        if bucket_of_bin is not None and buckets is not None:
            self.sizes = self._bucket_sizes(manifest, bucket_of_bin, buckets)
        self._members: OrderedDict[int, Sequence[NDArray[np.int64]]] = OrderedDict()

    def _bucket_sizes(
        self, manifest: Manifest, bucket_of_bin: NDArray[np.int64], buckets: int
    ) -> list[NDArray[np.int64]]:
        counts = np.zeros((buckets, len(manifest.shards)), dtype=np.int64)
        for number, shard in enumerate(manifest.shards):
            for aspect, count in _aspects(shard, self._root).items():
                counts[bucket_of_bin[aspect + MAX_BIN], number] += count
        return list(counts)

    def number(self, reader: ShardReader, bucket: int, shard: int, index: int) -> int:
        """The place in the shard of its `index`-th sample of a bucket (-1: of all).

        Raises:
            ShardSetError: The shard's index file is not what the manifest says.
        """
        if bucket < 0:
            return index
        members = self._members.get(shard)
        if members is None:
            members = self._members[shard] = self._find_members(reader, shard)
            if len(self._members) > _KEPT:
                self._members.popitem(last=False)
        return int(members[bucket][index])

    def _find_members(self, reader: ShardReader, shard: int) -> Sequence[NDArray[np.int64]]:
        assert self._bucket_of_bin is not None
        index = reader.opened(shard).index
        buckets = self._bucket_of_bin[aspect_bins(index.widths, index.heights) + MAX_BIN]
        members = [np.flatnonzero(buckets == bucket) for bucket in range(len(self.sizes))]
        if [len(one) for one in members] != [int(counts[shard]) for counts in self.sizes]:
            raise ShardSetError(
                f"{self._root}: the index of {reader.store.manifest.shards[shard].path} has other "
                "image shapes than the manifest says; write new ones with "
                f"`simple-diffusion data index {self._root}`"
            )
        return members

    def next(self, bucket: int, shard: int, index: int) -> tuple[int, int]:
        """The place (shard, index) after this one, round the end to the first."""
        sizes = self.sizes[max(0, bucket)]
        if index + 1 < sizes[shard]:
            return shard, index + 1
        shard = (shard + 1) % len(sizes)
        while sizes[shard] == 0:
            shard = (shard + 1) % len(sizes)
        return shard, 0


def aspect_totals(manifest: Manifest, root: str) -> dict[int, int]:
    """How many samples of a set have each aspect bin.

    Raises:
        ShardSetError: The manifest does not tell.
    """
    totals: dict[int, int] = {}
    for shard in manifest.shards:
        for aspect, count in _aspects(shard, root).items():
            totals[aspect] = totals.get(aspect, 0) + count
    return totals


def _aspects(shard: Shard, root: str) -> dict[int, int]:
    if not shard.samples:
        return {}
    try:
        counts = read_aspect_counts(shard.aspects)
    except ValueError as error:
        raise ShardSetError(f"{root}: {shard.path}: 'aspects' in the manifest: {error}") from None
    if not (counts and shard.index):
        raise ShardSetError(
            f"{root}: its manifest does not tell the shapes of the images in {shard.path}, which "
            f"aspect buckets go by; write a new one with `simple-diffusion data index {root}`"
        )
    if sum(counts.values()) != shard.samples:
        raise ShardSetError(
            f"{root}: {shard.path}: 'aspects' in the manifest counts {sum(counts.values())} "
            f"samples; the shard has {shard.samples}"
        )
    return counts
