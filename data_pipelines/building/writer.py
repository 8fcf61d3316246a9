"""Writes one shard: a WebDataset tar, its SHA-256, and its index file beside it.

Times and owners in the tar are fixed: the same samples give the same bytes. A shard appears under
its name when it is whole, never before.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from data_pipelines.aspects import aspect_counts
from data_pipelines.building.printable import storable
from data_pipelines.manifest import Manifest, Shard
from data_pipelines.sample import Sample
from data_pipelines.shard_index import ShardIndex, index_path, split_name

SHARD_NAME = re.compile(r"shard-\d{6,}\.(tar|index\.npz)")
UNFINISHED = ".unfinished"  # how the name of a shard that is being written ends


@dataclass(frozen=True)
class Written:
    """A shard that was written, or several of them.

    Attributes:
        shards: Their entries for the manifest.
        classes: Number of samples of each class.
        synthetic: Number of samples that a model made.
    """

    shards: tuple[Shard, ...] = ()
    classes: Counter[str] = field(default_factory=Counter)
    synthetic: int = 0

    @classmethod
    def joined(cls, parts: Iterable["Written"]) -> "Written":
        """All of several, in their order."""
        shards: list[Shard] = []
        classes, synthetic = Counter[str](), 0
        for part in parts:
            shards += part.shards
            classes.update(part.classes)
            synthetic += part.synthetic
        return cls(tuple(shards), classes, synthetic)


def shard_name(number: int) -> str:
    """The file name of a set's shard."""
    return f"shard-{number:06d}.tar"


def check_key(key: str) -> None:
    """Refuses a key under which a tar's reader would not find the sample.

    Raises:
        ValueError: It is empty or has a dot in its last part.
    """
    if split_name(f"{key}.x") != (key, "x") or "\0" in key:
        raise ValueError(
            f"{key!r} cannot be a sample's key; keys are not empty and have no dots in what "
            "follows the last slash"
        )


class ShardWriter:
    """One shard in the making.

    Args:
        path: The tar to be; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Two processes may write the same shard, one of which is thought to be dead.
        tag = f"{socket.gethostname()}-{os.getpid()}"
        self._file = HashedFile(path.with_name(f".{path.name}.{tag}{UNFINISHED}"))
        # An integer time: a float would cost 1.5 KiB of extended header per member.
        self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False)
        self._sizes: list[tuple[int, int]] = []
        self._classes: Counter[str] = Counter()
        self._synthetic = 0

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def bytes(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def add(self, sample: Sample) -> None:
        """Writes a sample.

        Raises:
            ValueError: Its key cannot be used.
        """
        check_key(sample.key)
        known = {"class": sample.class_, "caption": sample.caption}
        metadata = dict(sample.fields)
        metadata |= {name: value for name, value in known.items() if value is not None}
        metadata |= {"width": sample.width, "height": sample.height}
        if sample.synthetic:
            metadata["synthetic"] = True
            self._synthetic += 1
        self._tar.write(
            {
                "__key__": sample.key,
                sample.extension: sample.image,
                "json": _json(metadata),
            }
        )
        self._sizes.append((sample.width, sample.height))
        if sample.class_ is not None:
            self._classes[sample.class_] += 1

    def finish(self) -> Written:
        """Completes the shard, then its index."""
        self._tar.close()
        self._file.finish()
        os.replace(self._file.path, self._path)
        widths, heights = np.array(self._sizes, dtype=np.int32).reshape(-1, 2).T
        index = ShardIndex.scan(self._path).described(widths, heights, self._file.digest)
        assert len(index) == len(self._sizes)
        shard = Shard(
            path=self._path.name,
            samples=len(index),
            bytes=self._file.size,
            sha256=self._file.digest,
            index=index.save(index_path(self._path)),
            aspects=aspect_counts(widths, heights),
        )
        return Written((shard,), self._classes, self._synthetic)

    def abandon(self) -> None:
        """Removes what there is of the shard."""
        self._file.abandon()
        self._file.path.unlink(missing_ok=True)


def _json(metadata: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:  # half a surrogate pair in a field that is only passed on
        return json.dumps(metadata, sort_keys=True).encode()


def manifest_of(
    part: Written, *, classes: Sequence[str], source: str, licence: str, recipe: Mapping[str, Any]
) -> Manifest:
    """The manifest of shards that were written, with the fields that they do not tell."""
    classes = tuple(classes)
    return Manifest(
        shards=part.shards,
        classes=classes,
        class_counts=tuple(part.classes[name] for name in classes),
        synthetic=part.synthetic,
        source=storable(source),
        licence=storable(licence),
        recipe=recipe,
    )


class HashedFile(io.RawIOBase):
    """A file that knows the size and SHA-256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")  # noqa: SIM115  # finish() or abandon()
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._file.closed:  # tarfile writes what it still holds when it is collected
            return len(data)
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Closes the file when all of it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Closes the file; what it holds no longer matters, nor whether it can be written."""
        with contextlib.suppress(OSError):
            self._file.close()
