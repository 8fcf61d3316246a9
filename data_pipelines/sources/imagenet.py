"""ImageNet (ILSVRC2012) as it is distributed: the training classes, or the validation images."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipelines.sample import Rejected, Sample
from data_pipelines.shard_index import IMAGE_EXTENSIONS
from data_pipelines.sources.archive import archive_files, read_archived
from data_pipelines.sources.base import Item
from data_pipelines.sources.imagenet_labels import (
    WNID,
    check_complete,
    class_names,
    read_ground_truth,
    read_synsets,
)
from data_pipelines.sources.reading import file_size, read_image, stored_sample
from data_pipelines.sources.storage import ANY, ORIGINAL, Filters, Storage

_TRAIN = re.compile(r"(n\d{8})_\w+", re.ASCII)
_CACHED = ("_listing", "_truth", "_names")
TERMS = "ImageNet's terms of access: non-commercial research and education"


@dataclass(frozen=True)
class ImageNetSource:
    """Images of ILSVRC2012 with the standard labels: the WordNet IDs in sorted order.

    Attributes:
        path: For training, the folder of the class folders (train/n01440764/*.JPEG; a validation
            folder that was sorted into classes is one too) or ILSVRC2012_img_train.tar. For
            validation, with `ground_truth`, the flat folder of images or ILSVRC2012_img_val.tar.
        ground_truth: Classes of the validation images: LOC_val_solution.csv, or the development
            kit's ILSVRC2012_validation_ground_truth.txt.
        meta: What the kit's numbers mean: its meta.mat (needs scipy) or map_clsloc.txt.
        synsets: Names of the classes ("n01440764 tench, Tinca tinca"), and which there are: with
            them a part of the classes keeps its labels. Without, classes are called by ID.
        storage: How the images are stored.
        filters: Which are wanted.
        licence: Note on what the images may be used for.

    Raises:
        ValueError: From its methods: a file cannot be used, or a label is in doubt.
    """

    path: Path
    ground_truth: Path | None = None
    meta: Path | None = None
    synsets: Path | None = None
    storage: Storage = ORIGINAL
    filters: Filters = ANY
    licence: str = TERMS

    def __post_init__(self) -> None:
        if self.meta is not None and self.ground_truth is None:
            raise ValueError(f"{self.meta} (--meta) says what a ground truth means; name that too")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _CACHED}

    @property
    def read_paths(self) -> tuple[Path, ...]:
        """The folder or the archive."""
        return (self.path,)

    @property
    def title(self) -> str:
        """Where the images come from, for people."""
        return f"ImageNet, {'training' if self.ground_truth is None else 'validation'} images"

    @property
    def classes(self) -> tuple[str, ...]:
        """All class names in the order of the WordNet IDs, with or without images."""
        return tuple(self._names.values())

    def recipe(self) -> Mapping[str, Any]:
        """What decides the samples: the files by name and size, and the labels."""
        if self.path.is_file():
            files: list[Any] = [[self.path.name, self.path.stat().st_size]]
        else:
            files = [
                [i.key, file_size(self.path / str(i.place))]
                for i in self._listing
                if isinstance(i, Item)
            ]
        labels = [sorted(self._truth[0].items()) if self._truth else None, list(self.classes)]
        return {
            "builder": "imagenet",
            **self.storage.recipe(),
            **self.filters.recipe(),
            "licence": self.licence,
            "listing": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            "labels": hashlib.sha256(json.dumps(labels).encode()).hexdigest(),
        }

    def items(self) -> Iterator[Item | Rejected]:
        """The images by class and name, or the validation images by number."""
        return iter(self._listing)

    def sample(self, item: Item) -> Sample | Rejected:
        """Reads one image and converts it by the storage policy."""

        def read() -> bytes:
            if isinstance(item.place, list):
                return read_archived(self.path, *item.place)
            return read_image(self.path / str(item.place))

        return stored_sample(item, item.key, read, self.storage, self.filters)

    @cached_property
    def _truth(self) -> tuple[dict[str, str], tuple[str, ...]] | None:
        """WordNet ID of each validation image, and all WordNet IDs."""
        if self.ground_truth is None:
            return None
        return read_ground_truth(self.ground_truth, self.meta)

    @cached_property
    def _names(self) -> dict[str, str]:
        """WordNet ID -> class name."""
        if self._truth is not None:
            wnids = self._truth[1]
            if self.synsets is None and self.meta is None:
                assert self.ground_truth is not None
                check_complete(self.ground_truth, wnids)
        elif self.path.is_file():
            wnids = tuple({wnid for wnid, _, _ in self._files() if wnid})
        else:
            wnids = tuple(f.name for f in self.path.iterdir() if WNID.fullmatch(f.name))
        return class_names(wnids, None if self.synsets is None else read_synsets(self.synsets))

    @cached_property
    def _listing(self) -> list[Item | Rejected]:
        files = sorted(self._files(), key=lambda file: file[:2] if self._truth is None else file[1])
        if not files:
            raise ValueError(
                f"{self.path}: no images of ImageNet in it; it needs "
                + (
                    "folders or tars called n01440764 and so on, one for each class"
                    if self._truth is None
                    else "files called ILSVRC2012_val_00000001.JPEG and so on"
                )
            )
        entries, left = list[Item | Rejected](), set(self._truth[0] if self._truth else ())
        for wnid, stem, place in files:
            left.discard(stem)
            if not wnid:
                entries.append(Rejected(stem, "no label: the ground truth does not list it"))
                continue
            key = stem if self._truth else f"{wnid}/{stem}"
            entries.append(Item(key, place, self._names[wnid]))
        entries += [Rejected(stem, "missing: there is no such image") for stem in sorted(left)]
        return entries

    def _files(self) -> Iterator[tuple[str, str, str | list[Any]]]:
        """Yields WordNet ID (or nothing), name without extension, and place of each image."""
        for path, place in self._paths():
            folder, name = os.path.split(path)
            stem, extension = os.path.splitext(name)
            if extension[1:].lower() not in IMAGE_EXTENSIONS or name.startswith("."):
                continue
            if self._truth is not None:
                yield self._truth[0].get(stem, ""), stem, place
            elif WNID.fullmatch(folder):
                yield folder, stem, place
            elif match := _TRAIN.fullmatch(stem):  # in the archive only the names tell the class
                yield match[1], stem, place

    def _paths(self) -> Iterator[tuple[str, str | list[Any]]]:
        """Yields the path and the place of every file that may be an image."""
        if self.path.is_file():
            for file in archive_files(self.path):
                yield file.name.removeprefix("./"), [file.offset, file.size]
        elif self.path.is_dir():
            folders = [""]
            if self.ground_truth is None:
                folders = [f.name for f in self.path.iterdir() if WNID.fullmatch(f.name)]
            for folder in folders:
                for name in os.listdir(self.path / folder):
                    yield os.path.join(folder, name), os.path.join(folder, name)
        else:
            raise ValueError(f"{self.path}: there is no such folder or archive")
