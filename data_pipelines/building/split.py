"""Training and validation sets out of one shard set: by key, or by a field such as a photographer.

Samples are copied as they are, with all fields of their metadata. Which are held out is decided by
a hash: the same key, or the same value of the field, is on the same side in every set of one share.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.building.build_set import build_set
from data_pipelines.building.report import BuildReport
from data_pipelines.building.set_folder import key_hash
from data_pipelines.decode import DecodeError, probe
from data_pipelines.sample import Rejected, Sample
from data_pipelines.shards import SampleError, ShardReader
from data_pipelines.sources.base import Item
from data_pipelines.store import open_store

_MAX_OPEN = 4  # shards are read one after the other


def split(
    root: Path | str,
    out: Path | str,
    *,
    validation: float,
    field: str | None = None,
    **options: Any,
) -> BuildReport:
    """Writes the samples of a shard set as two: `out` and its held-out part, `out/validation`.

    Args:
        root: The set; a held-out part of its own is another set and stays where it is.
        out: Folder to create.
        validation: Share of the keys, or of the field's values, to hold out.
        field: Field of the samples' JSON whose values are not to be on both sides; samples without
            it are not held out.
        options: Of `build_set`: shard_samples or shard_bytes, workers, executor, slurm_options,
            overwrite, progress.

    Raises:
        ValueError: No share is given, or as in `build_set`.
    """
    root = Path(root)
    if validation <= 0:
        raise ValueError(f"validation is {validation}; a split needs a share above 0")
    return build_set(
        SplitSource(root, field), out, validation=validation, split_by_group=bool(field), **options
    )


@dataclass(frozen=True)
class SplitSource:
    """The samples of a shard set, with the value of a field as their group.

    Attributes:
        root: Folder of the shard set.
        field: Field of the samples' JSON, if one is to be looked up.
    """

    root: Path
    field: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "field": self.field}

    @property
    def read_paths(self) -> tuple[Path, ...]:
        """The set's folder."""
        return (self.root,)

    @property
    def title(self) -> str:
        """Where the images come from, for people."""
        return self._reader.store.manifest.source

    @property
    def licence(self) -> str:
        """The set's note."""
        return self._reader.store.manifest.licence

    @property
    def classes(self) -> tuple[str, ...]:
        """The set's, so that labels keep their meaning."""
        return self._reader.store.manifest.classes

    def recipe(self) -> Mapping[str, Any]:
        """What decides the samples."""
        return {
            "builder": "split",
            "name": self.root.resolve().name,
            "fingerprint": self._reader.store.manifest.fingerprint,
            "field": self.field,
        }

    def items(self) -> Iterator[Item | Rejected]:
        """The samples in the set's order."""
        # Foreign tars may each start their keys anew.
        hashes = [key_hash(self._reader.key(*place)) for place in self._places()]
        by_shard = len(np.unique(np.array(hashes, dtype=np.uint64))) < len(hashes)
        for shard, index in self._places():
            key = self._reader.key(shard, index)
            group = None
            if self.field is not None:
                try:
                    raw = self._reader.read(shard, index)
                    group = _text(raw.value(self.field))
                except SampleError as error:
                    yield Rejected(f"{error.shard}: {error.key}", error.reason)
                    continue
            yield Item(f"{shard:06d}/{key}" if by_shard else key, [shard, index], group=group)

    def sample(self, item: Item) -> Sample | Rejected:
        """Reads a sample as it is; whether it decodes is for `verify` to say."""
        assert isinstance(item.place, list)
        shard, index = item.place
        try:
            raw = self._reader.read(shard, index)
        except SampleError as error:
            return Rejected(f"{error.shard}: {error.key}", error.reason)
        width, height = raw.width, raw.height
        if width is None or height is None:
            try:
                width, height, _ = probe(raw.image)
            except DecodeError as error:
                return Rejected(item.key, str(error))
        return Sample(
            key=item.key,
            image=raw.image,
            extension=raw.extension,
            width=width,
            height=height,
            class_=None if raw.class_ is None else str(raw.class_),
            caption=raw.caption,
            synthetic=raw.synthetic,
            fields=raw.fields,
        )

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(open_store(self.root), max_open=_MAX_OPEN)

    def _places(self) -> Iterator[tuple[int, int]]:
        for shard, entry in enumerate(self._reader.store.manifest.shards):
            for index in range(entry.samples):
                yield shard, index


def _text(value: Any) -> str | None:
    """A field's value as text, by which samples are grouped."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True)
