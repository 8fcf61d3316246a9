"""A table of paths, classes and captions: CSV, JSON-lines or Parquet, beside the images."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources.base import Item
from data_pipelines.sources.reading import (
    file_digests,
    file_size,
    inner_path,
    numbered_classes,
    plain_key,
    read_image,
    refuse_text,
    stored_sample,
    text_or_none,
)
from data_pipelines.sources.rows import Row, column_names, read_rows, table_kind
from data_pipelines.sources.scan import cut, scan_all, without_duplicates
from data_pipelines.sources.storage import ANY, ORIGINAL, Filters, Storage

_BLOCK = 2**20


@dataclass(frozen=True)
class TableSource:
    """The images that a table lists, in its order.

    Attributes:
        table: File with one image a row: .csv or .tsv (the first line names the columns), .jsonl
            (one JSON object a line) or .parquet (needs the extra "parquet").
        root: Folder that the paths are relative to; None is the table's own.
        path: Column of the image's path.
        class_: Column of its class; None is "class", if there is such a column.
        caption: Column of its caption; None is "caption", if there is such a column.
        group: Column to split by, so that no value is on both sides; None if not.
        allow_absolute: Take paths that are absolute. Without it no path may leave `root`.
        storage: How the images are stored.
        filters: Which are wanted.
        licence: Note on what the images may be used for.
        drop_duplicates: Leave out files with the same bytes as an earlier one.
        scanned: Where the files' hashes are remembered; `prepared` sets it.

    Raises:
        ValueError: From its methods: the table cannot be used.
    """

    table: Path
    root: Path | None = None
    path: str = "path"
    class_: str | None = None
    caption: str | None = None
    group: str | None = None
    allow_absolute: bool = False
    storage: Storage = ORIGINAL
    filters: Filters = ANY
    licence: str = "not stated"
    drop_duplicates: bool = False
    scanned: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_listing"}

    @property
    def read_paths(self) -> tuple[Path, ...]:
        """The table; its images may be anywhere, also beside the set."""
        return (self.table,)

    @property
    def title(self) -> str:
        """Where the images come from, for people."""
        return f"images of the table {self.table.name}"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """0, 1, ... if all classes are numbers, so that they stay the labels; else None."""
        items = (entry for entry in self._listing if isinstance(entry, Item))
        found = (item.class_ for item in items if item.class_ is not None)
        return numbered_classes(found, str(self.table))

    def recipe(self) -> Mapping[str, Any]:
        """What decides the samples: the table, and its images by path and size."""
        table_kind(self.table)  # refuses what is no table before it reads it
        digest = hashlib.sha256()
        with open(self.table, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        images = [
            [_path(entry), file_size(self._file(entry))]
            for entry in self._listing
            if isinstance(entry, Item)
        ]
        return {
            "builder": "table",
            **self.storage.recipe(),
            **self.filters.recipe(),
            "licence": self.licence,
            "table": digest.hexdigest(),
            "listing": hashlib.sha256(json.dumps(images).encode()).hexdigest(),
            "columns": self._columns,
            "allow_absolute": self.allow_absolute,
            "drop_duplicates": self.drop_duplicates,
        }

    def prepared(self, folder: Path, *, workers: int, progress: bool) -> "TableSource":
        """The same source, its files' hashes remembered in `folder`, if they are asked for."""
        if not self.drop_duplicates:
            return self
        parts = [items for _, items in cut(self._listing)]
        title = f"{self.table}: hashes"
        scan_all(folder, self._digests, parts, workers=workers, progress=progress, title=title)
        return replace(self, scanned=folder)

    def items(self) -> Iterator[Item | Rejected]:
        """The rows in their order, bad ones with the reason."""
        if not self.drop_duplicates:
            return iter(self._listing)
        return without_duplicates(self._listing, self._digests, self.scanned, self._name)

    def sample(self, item: Item) -> Sample | Rejected:
        """Reads one image and converts it by the storage policy."""
        path = self._file(item)
        return stored_sample(
            item, self._name(item), lambda: read_image(path), self.storage, self.filters, self.group
        )

    @property
    def _columns(self) -> dict[str, str]:
        """Column of the path, class, caption and group: the last only if it is asked for."""
        columns = {
            "path": self.path,
            "class": self.class_ or "class",
            "caption": self.caption or "caption",
        }
        return columns if self.group is None else {**columns, "group": self.group}

    @cached_property
    def _listing(self) -> list[Item | Rejected]:
        entries: list[Item | Rejected] = []
        present, first = set(column_names(self.table) or ()), dict[str, str]()
        for row in read_rows(self.table, list(dict.fromkeys(self._columns.values()))):
            present |= row.values.keys()
            entry = self._entry(row)
            if isinstance(entry, Item):
                path = _path(entry)
                if first.setdefault(path, row.where) != row.where:
                    entry = Rejected(self._name(entry), f"listed twice: as {first[path]} is")
            entries.append(entry)
        self._check_columns(present)
        stems = Counter(i.key.lower() for i in entries if isinstance(i, Item))
        return [
            replace(entry, key=_key(_path(entry), shared=True))
            if isinstance(entry, Item) and stems[entry.key.lower()] > 1
            else entry
            for entry in entries
        ]

    def _check_columns(self, present: set[str]) -> None:
        """Columns that were asked for have to be there."""
        for name in (self.path, self.class_, self.caption, self.group):
            if name is not None and name not in present:
                raise ValueError(
                    f"{self.table}: there is no column {name!r} among "
                    + (", ".join(map(repr, sorted(present))) or "its columns: it is empty")
                )

    def _entry(self, row: Row) -> Item | Rejected:
        name = f"{self.table.name}, {row.where}"
        if row.fault is not None:
            return Rejected(name, row.fault)
        columns = self._columns
        path = row.values.get(columns["path"])
        if not isinstance(path, str):
            return Rejected(name, f"bad path: no text in the column {columns['path']!r}")
        try:
            plain = inner_path(path, allow_absolute=self.allow_absolute)
            texts = [
                text_or_none(row.values.get(columns.get(kind, "")), kind)
                for kind in ("class", "caption", "group")
            ]
        except ValueError as error:
            return Rejected(name, str(error))
        item = Item(_key(plain), [plain, row.where], *texts)
        reason = refuse_text(item) or self.filters.refuse_caption(item.caption)
        return item if reason is None else Rejected(name, reason)

    def _name(self, item: Item) -> str:
        assert isinstance(item.place, list)
        return f"{self.table.name}, {item.place[1]} ({_path(item)})"

    def _file(self, item: Item) -> Path:
        return (self.table.parent if self.root is None else self.root) / _path(item)

    def _digests(self, items: Sequence[Item]) -> list[str | None]:
        return file_digests([self._file(item) for item in items])


def _key(path: str, *, shared: bool = False) -> str:
    return plain_key(os.path.splitext(path)[0], path, shared=shared)


def _path(item: Item) -> str:
    assert isinstance(item.place, list)
    return str(item.place[0])
