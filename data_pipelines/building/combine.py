"""One shard set out of several: which samples is a pure function of their keys and a seed.

Images are copied as they are. Every sample keeps its class, its caption and whether a model made
it; the sources are mixed evenly, so that any stretch of the set holds them in proportion.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import merge
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.building.set_folder import destination
from data_pipelines.building.stream import BuildReport, Rejected, Sample, write_shards
from data_pipelines.classes import merged_classes
from data_pipelines.decode import DecodeError, probe
from data_pipelines.manifest import Manifest
from data_pipelines.shards import RawSample, SampleError, ShardReader
from data_pipelines.store import open_store

_MAX_OPEN = 4  # a source is read shard by shard


@dataclass(frozen=True)
class Source:
    """Some samples of a shard set: ranks `first` to `first + num` of the order that `seed` gives.

    A sample's rank depends on the keys and the seed alone, not on how the set is cut into shards.
    Ranges of one seed that do not overlap have no sample in common.

    Attributes:
        root: Folder of the shard set; its held-out part is a set of its own.
        num: Number of samples; None for all from `first` on.
        first: Lowest rank.
        seed: Chooses the order.
    """

    root: Path
    num: int | None = None
    first: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num is not None and self.num < 1:
            raise ValueError(f"{self.root}: {self.num} samples of it; take at least 1")
        if self.first < 0:
            raise ValueError(f"{self.root}: the first rank is {self.first}; it starts at 0")


def combine(
    sources: Sequence[Source],
    out: Path | str,
    *,
    shard_samples: int = 1000,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Writes samples of several shard sets as one.

    Classes are told apart by name: the first source's keep their labels, names that only later
    sources have come after them. The order of the sources decides this, and the number with which
    the keys begin; nothing else. Samples that cannot be read are left out and reported.

    Args:
        sources: What to take.
        out: Folder of the shard set.
        shard_samples, overwrite, progress: As in `write_shards`.

    Raises:
        ShardSetError: A source is missing or damaged, or as in `write_shards`.
        ValueError: A source does not have the samples asked for, or a class that is a number would
            change its label, or as in `write_shards`.
    """
    if not sources:
        raise ValueError(f"{out}: nothing to combine; name one or more shard sets")
    out = destination(out, [source.root for source in sources])
    parts = [_Part(number, source) for number, source in enumerate(sources)]
    manifests = [part.manifest for part in parts]
    return write_shards(
        partial(_mixed, parts),
        out,
        source=_joined([manifest.source for manifest in manifests], " + "),
        licence=_joined([manifest.licence for manifest in manifests], "; "),
        recipe={"builder": "combine", "sources": [part.recipe() for part in parts]},
        classes=merged_classes([str(source.root) for source in sources], manifests),
        shard_samples=shard_samples,
        overwrite=overwrite,
        total=sum(part.num for part in parts),
        progress=progress,
    )


class _Part:
    """The chosen samples of one source.

    About 32 bytes are kept of each sample of the source, besides the indices of open shards.

    Args:
        number: Place among the sources; the keys begin with it.
        source: What to take.
    """

    def __init__(self, number: int, source: Source) -> None:
        self._number, self._source = number, source
        self.manifest = Manifest.load(source.root)
        self._sizes = [shard.samples for shard in self.manifest.shards]
        self._classes = {None, *self.manifest.classes}
        there = self.manifest.num_samples
        self.num = there - source.first if source.num is None else source.num
        if self.num < 1 or source.first + self.num > there:
            raise ValueError(
                f"{source.root}: samples of rank {source.first} to "
                f"{source.first + max(self.num, 1) - 1} are asked for, but it has {there}; take "
                "fewer"
            )

    def recipe(self) -> dict[str, str | int]:
        """What decides the samples, as JSON values."""
        return {
            "name": self._source.root.resolve().name,
            "fingerprint": self.manifest.fingerprint,
            "num": self.num,
            "first": self._source.first,
            "seed": self._source.seed,
        }

    def samples(self) -> Iterator[tuple[float, str, int, Sample | Rejected]]:
        """Yields the chosen samples as they lie in the source, each with its place in [0, 1).

        The fingerprint and number behind the place decide between sources of equal places.
        """
        reader = ShardReader(open_store(self._source.root), max_open=_MAX_OPEN)
        try:
            hashes = self._hashes(reader)
            # Foreign tars may each start their keys anew.
            named_by_shard = len(np.unique(hashes)) < len(hashes)
            ranked = np.argsort(hashes, kind="stable")
            chosen = np.sort(ranked[self._source.first : self._source.first + self.num])
            ends = np.cumsum(self._sizes)
            for turn, number in enumerate(chosen.tolist()):
                shard = int(np.searchsorted(ends, number, side="right"))
                index = number - int(ends[shard]) + self._sizes[shard]
                prefix = f"{self._number}/{shard:06d}/" if named_by_shard else f"{self._number}/"
                item = self._read(reader, shard, index, prefix)
                yield (turn + 0.5) / self.num, self.manifest.fingerprint, self._number, item
        finally:
            reader.close()

    def _read(self, reader: ShardReader, shard: int, index: int, prefix: str) -> Sample | Rejected:
        try:
            sample = _sample(reader.read(shard, index), prefix)
        except (SampleError, DecodeError, UnicodeEncodeError) as error:
            reason = error.reason if isinstance(error, SampleError) else str(error)
        else:
            if sample.class_ in self._classes:
                return sample
            reason = f"class {sample.class_!r} is not in the manifest"
        path = self._source.root / self.manifest.shards[shard].path
        key = reader.key(shard, index).encode("utf-8", "backslashreplace").decode()
        return Rejected(f"{path}: {key}", reason)

    def _hashes(self, reader: ShardReader) -> NDArray[np.uint64]:
        """Hashes every key with the seed."""
        hashes = np.empty(self.manifest.num_samples, dtype=np.uint64)
        row = 0
        for shard, size in enumerate(self._sizes):
            for index in range(size):
                text = f"{self._source.seed}:{reader.key(shard, index)}"
                digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
                hashes[row] = int.from_bytes(digest[:8], "big")
                row += 1
        return hashes


def _mixed(parts: Sequence[_Part]) -> Iterator[Sample | Rejected]:
    """Takes from the parts in turn, from each as often as its size demands."""
    for *_, item in merge(*(part.samples() for part in parts), key=lambda entry: entry[:3]):
        yield item


def _sample(raw: RawSample, prefix: str) -> Sample:
    class_ = None if raw.class_ is None else str(raw.class_)
    for text in (raw.key, class_, raw.caption):
        (text or "").encode()  # lone surrogates could not be written
    if raw.width is None or raw.height is None:
        width, height, _ = probe(raw.image)
    else:
        width, height = raw.width, raw.height
    return Sample(
        key=prefix + raw.key,
        image=raw.image,
        extension=raw.extension,
        width=width,
        height=height,
        class_=class_,
        caption=raw.caption,
        synthetic=raw.synthetic,
        fields=raw.fields,
    )


def _joined(texts: Sequence[str], separator: str) -> str:
    """Joins texts whose own parts may be joined by the same separator; each part once."""
    return separator.join(dict.fromkeys(part for text in texts for part in text.split(separator)))
