"""A folder of images: classes from its sub-folders, or from a CSV file of labels."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources.base import Item
from data_pipelines.sources.listing import ImageFile, find_images, read_labels
from data_pipelines.sources.reading import file_digests, file_size, read_image, stored_sample
from data_pipelines.sources.scan import cut, scan_all, without_duplicates
from data_pipelines.sources.storage import ANY, ORIGINAL, Filters, Storage


@dataclass(frozen=True)
class FolderSource:
    """The images in a folder and below it, hidden ones aside, by path; links are followed.

    Attributes:
        folder: Where the images are. Without `labels`, the first sub-folder is the class.
        labels: CSV file with the columns `file` (relative to `folder`) and `class`, and perhaps
            `caption`; other columns are ignored. Images that it does not list are left out.
        storage: How the images are stored.
        filters: Which are wanted.
        licence: Note on what the images may be used for.
        group: Column of the labels file to split by, so that no value is on both sides.
        drop_duplicates: Leave out files with the same bytes as an earlier one.
        scanned: Where the files' hashes are remembered; `prepared` sets it.

    Raises:
        ValueError: From its methods: the folder or the labels cannot be used.
    """

    folder: Path
    labels: Path | None = None
    storage: Storage = ORIGINAL
    filters: Filters = ANY
    licence: str = "not stated"
    group: str | None = None
    drop_duplicates: bool = False
    scanned: Path | None = None

    def __post_init__(self) -> None:
        if self.group is not None and self.labels is None:
            raise ValueError(
                f"group {self.group!r} is a column of a labels file; name one (--labels)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_listing"}

    @property
    def read_paths(self) -> tuple[Path, ...]:
        """The folder."""
        return (self.folder,)

    @property
    def title(self) -> str:
        """Where the images come from, for people."""
        return f"images of the folder {self.folder.resolve().name}"

    def recipe(self) -> Mapping[str, Any]:
        """What decides the samples; the files count by path and size."""
        images = self._listing[0]
        listing = [[i.path, file_size(self.folder / i.path), i.class_, i.caption] for i in images]
        recipe = {
            "builder": "folder",
            **self.storage.recipe(),
            **self.filters.recipe(),
            "licence": self.licence,
            "images": len(images),
            "listing": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
        }
        if self.group is not None:
            groups = json.dumps([i.group for i in images]).encode()
            recipe["groups"] = hashlib.sha256(groups).hexdigest()
        if self.drop_duplicates:
            recipe["drop_duplicates"] = True
        return recipe

    def prepared(self, folder: Path, *, workers: int, progress: bool) -> "FolderSource":
        """The same source, its files' hashes remembered in `folder`, if they are asked for."""
        if not self.drop_duplicates:
            return self
        parts = [items for _, items in cut(self._entries())]
        title = f"{self.folder}: hashes"
        scan_all(folder, self._digests, parts, workers=workers, progress=progress, title=title)
        return replace(self, scanned=folder)

    def items(self) -> Iterator[Item | Rejected]:
        """What is left out before any image is read, then the images by path."""
        entries = self._entries()
        if not self.drop_duplicates:
            return entries
        return without_duplicates(
            entries, self._digests, self.scanned, lambda item: str(item.place)
        )

    def sample(self, item: Item) -> Sample | Rejected:
        """Reads one image and converts it by the storage policy."""
        path = self.folder / str(item.place)
        return stored_sample(
            item, str(item.place), lambda: read_image(path), self.storage, self.filters, self.group
        )

    @cached_property
    def _listing(self) -> tuple[list[ImageFile], list[Rejected]]:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: there is no such folder of images")
        table = None if self.labels is None else read_labels(self.labels, self.group)
        return find_images(self.folder, table)

    def _entries(self) -> Iterator[Item | Rejected]:
        images, rejected = self._listing
        yield from rejected
        for image in images:
            reason = self.filters.refuse_caption(image.caption)
            if reason is not None:
                yield Rejected(image.path, reason)
            else:
                yield Item(image.key, image.path, image.class_, image.caption, image.group)

    def _digests(self, items: Sequence[Item]) -> list[str | None]:
        return file_digests([self.folder / str(item.place) for item in items])
