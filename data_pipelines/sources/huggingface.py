"""A Hugging Face data set, on disk or by name, with its images as the bytes that they came as."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipelines.decode import DecodeError
from data_pipelines.sample import Rejected, Sample
from data_pipelines.shards import MAX_IMAGE_BYTES
from data_pipelines.sources.base import Item
from data_pipelines.sources.reading import (
    ITS_OWN_ERRORS,
    file_size,
    numbered_classes,
    read_image,
    refuse_text,
    stored_sample,
    text_or_none,
)
from data_pipelines.sources.scan import cut, scan_all, without_duplicates
from data_pipelines.sources.storage import ANY, ORIGINAL, Filters, Storage

_BATCH = 1024
_CACHED = ("_rows", "_images", "_columns", "_label_names", "classes")


@dataclass(frozen=True)
class HuggingFaceSource:
    """The rows of one split of a data set, in their order (needs the extra "hf").

    Attributes:
        dataset: A folder that `save_to_disk` wrote, or what `load_dataset` takes: a name, or a
            folder of Parquet files or, with `allow_absolute`, of images.
        split: Which split; may be left out if there is only one.
        config: Which configuration, where the data set has several.
        image: Column of the images; None is the only one that holds images.
        class_: Column of the classes; None is the only ClassLabel, if there is one.
        caption: Column of the captions; None is "caption" or "text", if it holds text.
        group: Column to split by, so that no value is on both sides; None if not.
        allow_absolute: Take images that are files which the data set names; without it they
            have to be in the data set itself.
        storage: How the images are stored.
        filters: Which are wanted.
        licence: Note on what the images may be used for.
        drop_duplicates: Leave out images with the same bytes as an earlier one.
        scanned: Where the images' hashes are remembered; `prepared` sets it.

    Raises:
        ValueError: From its methods: the data set cannot be used.
    """

    dataset: str
    split: str | None = None
    config: str | None = None
    image: str | None = None
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
        return {name: value for name, value in self.__dict__.items() if name not in _CACHED}

    @property
    def read_paths(self) -> tuple[Path, ...]:
        """The folder, if it is one."""
        return (Path(self.dataset),) if Path(self.dataset).exists() else ()

    @property
    def title(self) -> str:
        """Where the images come from, for people."""
        parts = [self._name, self.config, self.split]
        return "Hugging Face data set " + ", ".join(part for part in parts if part)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The ClassLabel's names; 0, 1, ... if all classes are numbers; else None."""
        if self._label_names is not None:
            return self._label_names
        items = (entry for entry in self._entries() if isinstance(entry, Item))
        found = (item.class_ for item in items if item.class_ is not None)
        return numbered_classes(found, self._name)

    def recipe(self) -> Mapping[str, Any]:
        """What decides the samples; the data counts by its fingerprint, or its files' sizes."""
        return {
            "builder": "huggingface",
            **self.storage.recipe(),
            **self.filters.recipe(),
            "licence": self.licence,
            "dataset": self._name,
            "config": self.config,
            "split": self.split,
            "rows": len(self._rows),
            "fingerprint": self._fingerprint,
            "columns": self._columns,
            "allow_absolute": self.allow_absolute,
            "drop_duplicates": self.drop_duplicates,
        }

    def prepared(self, folder: Path, *, workers: int, progress: bool) -> "HuggingFaceSource":
        """The same source, its images' hashes remembered in `folder`, if they are asked for."""
        if not self.drop_duplicates:
            return self
        parts = [items for _, items in cut(self._entries())]
        title = f"{self._name}: hashes"
        scan_all(folder, self._digests, parts, workers=workers, progress=progress, title=title)
        return replace(self, scanned=folder)

    def items(self) -> Iterator[Item | Rejected]:
        """The rows in their order, bad ones with the reason."""
        if not self.drop_duplicates:
            return self._entries()
        return without_duplicates(self._entries(), self._digests, self.scanned, _row)

    def sample(self, item: Item) -> Sample | Rejected:
        """Reads one image and converts it by the storage policy."""
        return stored_sample(
            item, _row(item), lambda: self._read(item), self.storage, self.filters, self.group
        )

    @property
    def _name(self) -> str:
        """The data set's name, without the path of this machine."""
        return Path(self.dataset).resolve().name if Path(self.dataset).exists() else self.dataset

    @property
    def _fingerprint(self) -> str:
        """The library's own, but for folders of files, where it changes with their times."""
        folder = Path(self.dataset)
        if not folder.is_dir() or _is_saved(folder):
            return str(self._rows._fingerprint)
        names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
        files = [[name.as_posix(), file_size(folder / name)] for name in shown]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()

    @cached_property
    def _rows(self) -> Any:
        """The split; every process opens it for itself."""
        return _load(self.dataset, self.config, self.split)

    @cached_property
    def _images(self) -> Any:
        """The column of images, undecoded."""
        import datasets

        column = self._columns["image"]
        rows = self._rows.select_columns([column])
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        return rows

    @cached_property
    def _columns(self) -> dict[str, str | None]:
        """Column of the image, class, caption and group."""
        features = self._rows.features
        named = {
            "image": self.image or _only(features, "Image", self._name, needed=True),
            "class": self.class_ or _only(features, "ClassLabel", self._name, needed=False),
            "caption": self.caption or _caption(features),
            "group": self.group,
        }
        for kind, name in named.items():
            if name is None:
                continue
            if name not in features:
                raise ValueError(
                    f"{self._name}: there is no column {name!r}; it has {', '.join(features)}"
                )
            dtype = str(getattr(features[name], "dtype", ""))
            if kind != "image" and not dtype.startswith(("string", "large_string", "int", "uint")):
                raise ValueError(
                    f"{self._name}: column {name!r} holds {features[name]}, not text or integers"
                )
        return named

    @cached_property
    def _label_names(self) -> tuple[str, ...] | None:
        """Names of a ClassLabel's numbers."""
        column = self._columns["class"]
        names = None if column is None else getattr(self._rows.features[column], "names", None)
        return None if names is None else tuple(names)

    def _entries(self) -> Iterator[Item | Rejected]:
        kinds = {k: name for k, name in self._columns.items() if name and k != "image"}
        if not kinds:
            yield from (Item(f"{number:08d}", number) for number in range(len(self._rows)))
            return
        number = 0
        rows = self._rows.select_columns(list(dict.fromkeys(kinds.values())))
        for batch in rows.iter(_BATCH):
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                yield self._entry(number, {kind: row[name] for kind, name in kinds.items()})
                number += 1

    def _entry(self, number: int, values: dict[str, Any]) -> Item | Rejected:
        class_ = values.get("class")
        names = self._label_names
        if names is not None and class_ is not None:
            # -1 is the library's own sign for a row without a label.
            if class_ >= len(names):
                far = f"bad class: number {class_}, and there are names for {len(names)}"
                return Rejected(f"row {number}", far)
            class_ = names[class_] if class_ >= 0 else None
        try:
            item = Item(
                f"{number:08d}",
                number,
                text_or_none(class_, "class"),
                text_or_none(values.get("caption"), "caption"),
                text_or_none(values.get("group"), "group"),
            )
        except ValueError as error:
            return Rejected(f"row {number}", str(error))
        reason = refuse_text(item) or self.filters.refuse_caption(item.caption)
        return item if reason is None else Rejected(f"row {number}", reason)

    def _read(self, item: Item) -> bytes:
        value = self._images[item.place][self._columns["image"]]
        if isinstance(value, Mapping):
            data, path = value.get("bytes"), value.get("path")
        else:
            data, path = value, None
        if data is None and path:
            if not self.allow_absolute:
                raise DecodeError("it is a file outside the data set; allow it (--allow_absolute)")
            return read_image(Path(path))
        if not isinstance(data, bytes):
            raise DecodeError("there is no image in this row")
        if len(data) > MAX_IMAGE_BYTES:
            raise DecodeError(f"it is larger than {MAX_IMAGE_BYTES} bytes")
        return data

    def _digests(self, items: Sequence[Item]) -> list[str | None]:
        digests: list[str | None] = []
        for item in items:
            try:
                digests.append(hashlib.sha256(self._read(item)).hexdigest())
            except DecodeError:
                digests.append(None)
            except OSError as error:
                if error.errno not in ITS_OWN_ERRORS:
                    raise
                digests.append(None)
        return digests


def _row(item: Item) -> str:
    return f"row {item.place}"


def _load(dataset: str, config: str | None, split: str | None) -> Any:
    """Opens one split."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "reading Hugging Face data sets needs the package datasets; "
            "install it with `pip install 'simple-diffusion[hf]'`"
        ) from None
    if int(datasets.__version__.split(".")[0]) < 4:
        raise ValueError(
            f"the package datasets is of version {datasets.__version__}, which may run a data "
            "set's own code; install 4 or later (`pip install 'simple-diffusion[hf]'`)"
        )
    folder = Path(dataset)
    saved = _is_saved(folder)
    if saved and config is not None:
        raise ValueError(
            f"{dataset}: was saved by `save_to_disk` and has no configurations; leave --config out"
        )
    try:
        if saved:
            found = datasets.load_from_disk(dataset)
        else:
            found = datasets.load_dataset(dataset, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{dataset}: cannot be opened as a data set ({error})") from None
    if not isinstance(found, datasets.DatasetDict):
        if saved and split is not None:
            raise ValueError(f"{dataset}: is a single split; leave --split out")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ValueError(f"{dataset}: choose a split with --split, one of {', '.join(found)}")
    return found[split]


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _only(features: Any, kind: str, name: str, *, needed: bool) -> str | None:
    """The only column of a kind."""
    found = [column for column, value in features.items() if type(value).__name__ == kind]
    if len(found) > 1 or (needed and not found):
        option = "image" if needed else "class"
        raise ValueError(
            f"{name}: {len(found)} columns of type {kind} ({', '.join(found or features)}); name "
            f"the one to use with --{option}_column"
        )
    return found[0] if found else None


def _caption(features: Any) -> str | None:
    for name in ("caption", "text"):
        if name in features and getattr(features[name], "dtype", "") in ("string", "large_string"):
            return name
    return None
