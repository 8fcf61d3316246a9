"""WebDataset tars as a source: ours, webdataset's own or img2dataset's, to be made into new shards.

One look through the tars, in parallel and remembered, decides which samples there are to store: the
shards are cut from those that are wanted, so they come out full-sized. All fields of a sample's
JSON are kept as they are, except for its size in pixels, which is the stored image's: what others
say of the image that it was before (a `sha256`, `original_width`) still speaks of that one.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from data_pipelines.decode import DecodeError, probe
from data_pipelines.manifest import MANIFEST_NAME, Manifest
from data_pipelines.sample import Rejected, Sample
from data_pipelines.shards import OpenShard, RawSample, SampleError
from data_pipelines.sources.base import Item
from data_pipelines.sources.reading import (
    numbered_classes,
    plain_key,
    stored_sample,
    text_or_none,
)
from data_pipelines.sources.scan import Duplicates, scan_all, scan_part
from data_pipelines.sources.storage import ANY, ORIGINAL, Filters, Storage


@dataclass(frozen=True)
class TarSource:
    """The samples of the tars in a folder, in the order of their manifest or else by path.

    Attributes:
        folder: Where the tars are; sub-folders with a manifest of their own are left alone.
        storage: How the images are stored.
        filters: Which are wanted.
        licence: Note on what the images may be used for; by default the manifest's, if any.
        group: Field of the samples' JSON to split by, so that no value is on both sides.
        drop_duplicates: Leave out images with the same bytes as an earlier one.
        scanned: Where the look through the tars is remembered; `prepared` sets it.

    Raises:
        ValueError: From its methods: there are no tars, or one is damaged.
    """

    folder: Path
    storage: Storage = ORIGINAL
    filters: Filters = ANY
    licence: str = ""
    group: str | None = None
    drop_duplicates: bool = False
    scanned: Path | None = None

    def __post_init__(self) -> None:
        if not self.licence:
            stated = self._manifest.licence if self._manifest else "not stated"
            object.__setattr__(self, "licence", stated)

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in self.__dict__.items() if name not in ("_tars", "_manifest")}

    @property
    def read_paths(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.folder,)

    @property
    def title(self) -> str:
        """Where the images come from, for people."""
        manifest = self._manifest
        return manifest.source if manifest else f"tars of the folder {self.folder.resolve().name}"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The manifest's; else 0, 1, ... if all classes are numbers; else None."""
        if self._manifest is not None:
            return self._manifest.classes
        looks = (self._look(number) for number in range(len(self._tars)))
        return numbered_classes((n for look in looks for n in look["classes"]), str(self.folder))

    def recipe(self) -> Mapping[str, Any]:
        """What decides the samples; tars without a manifest count by name and size."""
        if self._manifest is not None:
            listing: list[Any] = [self._manifest.fingerprint]
        else:
            listing = [[name, (self.folder / name).stat().st_size] for name in self._tars]
        return {
            "builder": "tars",
            **self.storage.recipe(),
            **self.filters.recipe(),
            "licence": self.licence,
            "tars": len(self._tars),
            "listing": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
            "group": self.group,
            "drop_duplicates": self.drop_duplicates,
        }

    def prepared(self, folder: Path, *, workers: int, progress: bool) -> "TarSource":
        """The same source with its look through the tars behind it, remembered in `folder`."""
        parts = range(len(self._tars))
        title = f"{self.folder}: looking through tars"
        scan_all(folder, self._scan, parts, workers=workers, progress=progress, title=title)
        return replace(self, scanned=folder)

    def items(self) -> Iterator[Item | Rejected]:
        """The samples in their order, those that are not wanted with the reason."""
        seen, keys = Duplicates(), set[str]()
        for number, tar in enumerate(self._tars):
            for index, name, digest, group, reason in self._look(number)["samples"]:
                where = f"{tar}, {name}"
                reason = reason or seen.refuse(digest, where)
                if reason is not None:
                    yield Rejected(where, reason)
                    continue
                key = plain_key(name, name)
                if key.lower() in keys:  # another tar's, most likely: "000001" is in all of them
                    key = plain_key(name, f"{tar}/{index}/{name}", shared=True)
                keys.add(key.lower())
                yield Item(key, [number, index], group=group)

    def sample(self, item: Item) -> Sample | Rejected:
        """Reads one sample and converts its image by the storage policy."""
        assert isinstance(item.place, list)
        number, index = item.place
        tar = _open(self.folder / self._tars[number])
        name = f"{self._tars[number]}, {tar.key(index)}"
        try:
            raw = tar.read(index, self._tars[number])
        except SampleError as error:
            return Rejected(name, f"unusable sample: {error.reason}")
        class_ = None if raw.class_ is None else str(raw.class_)
        if class_ is not None and self._manifest and class_ not in self._manifest.classes:
            return Rejected(name, f"unknown class: {class_[:200]!r} is not in the manifest")
        item = replace(item, class_=class_, caption=raw.caption or None)
        stored = stored_sample(item, name, lambda: raw.image, self.storage, self.filters)
        if isinstance(stored, Sample):
            return replace(stored, synthetic=raw.synthetic, fields=raw.fields)
        return stored

    @cached_property
    def _manifest(self) -> Manifest | None:
        found = (self.folder / MANIFEST_NAME).exists()
        return Manifest.load(self.folder) if found else None

    @cached_property
    def _tars(self) -> tuple[str, ...]:
        """Paths of the tars, relative to the folder."""
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: there is no such folder of tars")
        if self._manifest is not None:
            return tuple(shard.path for shard in self._manifest.shards)
        found = sorted(path.relative_to(self.folder).as_posix() for path in _tars(self.folder))
        if not found:
            raise ValueError(f"{self.folder}: no .tar files in it; they must not be compressed")
        return tuple(found)

    def _look(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = scan_part(self.scanned, number, self._scan, number)
        return found

    def _scan(self, number: int) -> dict[str, Any]:
        """Looks through one tar: its classes, and [index, key, digest, group, reason] of each."""
        path = self.folder / self._tars[number]
        tar, samples, classes = OpenShard(path), [], set[str]()
        for index in range(len(tar)):
            digest = group = reason = None
            try:
                raw = tar.read(index, path.name)
                reason = self._refuse(raw)
                if reason is None and self.drop_duplicates:
                    digest = hashlib.sha256(raw.image).hexdigest()
                if reason is None and self.group is not None:
                    group = text_or_none(raw.value(self.group), self.group)
                if reason is None and raw.class_ is not None:
                    classes.add(str(raw.class_))
            except SampleError as error:
                reason = f"unusable sample: {error.reason}"
            except ValueError as error:
                reason = str(error)
            samples.append([index, tar.key(index), digest, group, reason])
        tar.close()
        return {"classes": sorted(classes), "samples": samples}

    def _refuse(self, raw: RawSample) -> str | None:
        reason = self.filters.refuse_caption(raw.caption)
        if reason is None and self.filters.by_size:
            try:
                reason = self.filters.refuse_size(*probe(raw.image)[:2])
            except DecodeError as error:
                reason = f"unreadable image: {error}"
        return reason


def _tars(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            if not (path / MANIFEST_NAME).exists():
                yield from _tars(path)
        elif path.suffix == ".tar" and not path.name.startswith("."):
            yield path


def _open(path: Path) -> OpenShard:
    status = path.stat()
    return _opened(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _opened(path: Path, size: int, time: int) -> OpenShard:
    """The tar, open while it is being read: a shard's samples mostly come from one or two."""
    return OpenShard(path)
