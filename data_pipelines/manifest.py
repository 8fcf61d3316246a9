"""What is in a shard set: shards with their sizes and checksums, class names, counts, licence.

A shard set is a folder of ordinary WebDataset tars with one `manifest.json` beside them. The
manifest is untrusted input: every field is checked before it is used, and no path may leave the
folder.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 512 * 2**20  # 10^5 shards of images of all shapes need about 90 MiB


class ShardSetError(ValueError):
    """A shard set cannot be used as it is; the message says what differs and what to do."""


@dataclass(frozen=True)
class Shard:
    """One tar of a shard set.

    Attributes:
        path: POSIX path relative to the set's folder.
        samples: Number of samples (groups of members with one key).
        bytes: Size of the tar file.
        sha256: Checksum of the tar file, 64 hexadecimal digits.
        index: Checksum of its index file (see `shard_index`), empty where there is none.
        aspects: How many samples have which shape, as text (see `aspects`); empty where it is not
            known.
    """

    path: str
    samples: int
    bytes: int
    sha256: str
    index: str = ""
    aspects: str = ""


@dataclass(frozen=True)
class Manifest:
    """The contents of a shard set.

    Attributes:
        shards: The tars, in a fixed order: `Order` and `ShardReader` number them by it.
        classes: Class names; the position of a name is its label.
        class_counts: Number of samples of each class, in the order of `classes`.
        licence: Note on what the images may be used for.
        source: Where the images came from, for people.
        recipe: What the set was built with; two builds with one recipe give the same bytes.
        format_version: Version of this file format.
        synthetic: Number of samples that a model made; the others are real, or not known to be
            otherwise.
    """

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    licence: str
    source: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    synthetic: int = 0

    @property
    def num_samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash of the shards' checksums and the class names: which data this is, for resuming."""
        content = [[s.sha256 for s in self.shards], list(self.classes)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def save(self, root: Path) -> None:
        """Writes `root/manifest.json` atomically; equal manifests give equal bytes."""
        document: dict[str, Any] = {
            "format_version": self.format_version,
            "source": self.source,
            "licence": self.licence,
            "recipe": dict(self.recipe),
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
            "shards": [_shard_document(shard) for shard in self.shards],
        }
        if self.synthetic:  # sets of real images look as they did before there was this key
            document["synthetic"] = self.synthetic
        path = Path(root) / MANIFEST_NAME
        temporary = path.with_suffix(".json.partial")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, ensure_ascii=False, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, root: Path) -> "Manifest":
        """Reads and checks `root/manifest.json`, and the byte size of every tar it names.

        Raises:
            ShardSetError: The folder or the manifest is missing, malformed, of a later format or
                empty, or a tar is missing or not of the stated size.
        """
        root = Path(root)
        manifest = cls.parse(root)
        if manifest.num_samples == 0:
            raise ShardSetError(
                f"{root / MANIFEST_NAME}: the shard set holds no samples; build it again "
                "(`simple-diffusion data build`) from a source that has images"
            )
        for shard in manifest.shards:
            path = root / shard.path
            try:
                size = path.stat().st_size
            except OSError as error:
                raise ShardSetError(
                    f"{path}: this shard is in the manifest but cannot be read "
                    f"({error.strerror}); restore the file, or accept what is there with "
                    f"`simple-diffusion data index {root}`"
                ) from None
            if size != shard.bytes:
                raise ShardSetError(
                    f"{path}: the file has {size} bytes but the manifest says {shard.bytes}; "
                    "restore the file, or accept what is there with "
                    f"`simple-diffusion data index {root}`"
                )
        return manifest

    @classmethod
    def parse(cls, root: Path) -> "Manifest":
        """Reads `root/manifest.json` and checks its types, without looking at the tars.

        Raises:
            ShardSetError: The folder or the manifest is missing, malformed or of a later format.
        """
        root = Path(root)
        path = root / MANIFEST_NAME
        if re.match(r"\w+:/", str(root)) and not root.is_dir():
            raise ShardSetError(
                f"{root}: is a URL, from which only training reads; copy the set to a folder of "
                "this machine to use it here"
            )
        if not root.is_dir():
            raise ShardSetError(
                f"{root}: there is no such folder; build a shard set there with "
                "`simple-diffusion data build`"
            )
        if not path.is_file():
            raise ShardSetError(
                f"{path}: missing, so this folder is not a (complete) shard set; if it holds tars "
                f"of images, run `simple-diffusion data index {root}`"
            )
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ShardSetError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes; not a manifest")
        return cls.from_bytes(path.read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, path: str) -> "Manifest":
        """Reads a manifest file's content and checks its types.

        Args:
            data: The content.
            path: Where it is from, for messages.

        Raises:
            ShardSetError: It is malformed or of a later format.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ShardSetError(
                f"{path}: not valid JSON ({error}); write a new one with "
                "`simple-diffusion data index`"
            ) from None
        return cls._from_document(document, path)

    @classmethod
    def _from_document(cls, document: object, path: str) -> "Manifest":
        version = _take(document, "format_version", int, path)
        assert isinstance(document, dict)
        if version > FORMAT_VERSION:
            raise ShardSetError(
                f"{path}: format_version {version} is later than this release reads "
                f"({FORMAT_VERSION}); upgrade simple-diffusion"
            )
        if version < 1:
            raise ShardSetError(f"{path}: format_version is {version}; it must be 1 or more")
        classes = _take(document, "classes", list, path)
        counts = _take(document, "class_counts", list, path)
        if not all(isinstance(name, str) for name in classes):
            raise ShardSetError(f"{path}: 'classes' must be a list of strings")
        if len(set(classes)) != len(classes):
            raise ShardSetError(f"{path}: 'classes' names a class twice")
        if len(counts) != len(classes) or not all(_is_count(count) for count in counts):
            raise ShardSetError(
                f"{path}: 'class_counts' must be one non-negative integer for each of the "
                f"{len(classes)} classes"
            )
        shards = tuple(
            _parse_shard(entry, f"shards[{number}]", path)
            for number, entry in enumerate(_take(document, "shards", list, path))
        )
        if len({shard.path for shard in shards}) != len(shards):
            raise ShardSetError(f"{path}: 'shards' names a file twice")
        synthetic = document.get("synthetic", 0)
        num_samples = sum(shard.samples for shard in shards)
        if not _is_count(synthetic) or synthetic > num_samples:
            raise ShardSetError(
                f"{path}: 'synthetic' is {synthetic!r}; it must be a number of samples, at most "
                f"the {num_samples} that there are"
            )
        return cls(
            shards=shards,
            classes=tuple(classes),
            class_counts=tuple(counts),
            licence=_take(document, "licence", str, path),
            source=_take(document, "source", str, path),
            recipe=_take(document, "recipe", dict, path),
            format_version=version,
            synthetic=synthetic,
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _shard_document(shard: Shard) -> dict[str, Any]:
    document: dict[str, Any] = {
        "path": shard.path,
        "samples": shard.samples,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
    }
    if shard.index:
        document["index"] = shard.index
    if shard.aspects:
        document["aspects"] = shard.aspects
    return document


def _take(document: object, key: str, kind: type, path: str, where: str = "") -> Any:
    """Returns `document[key]`, checked to be of type `kind`."""
    label = f"{where}.{key}" if where else key
    if not isinstance(document, dict):
        raise ShardSetError(f"{path}: {where or 'the file'} must be a JSON object")
    if key not in document:
        raise ShardSetError(f"{path}: key '{label}' is missing; it must be a {kind.__name__}")
    value = document[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ShardSetError(
            f"{path}: key '{label}' must be a {kind.__name__}, not {type(value).__name__}"
        )
    return value


def _parse_shard(entry: object, where: str, path: str) -> Shard:
    name = _take(entry, "path", str, path, where)
    samples = _take(entry, "samples", int, path, where)
    size = _take(entry, "bytes", int, path, where)
    digest = _take(entry, "sha256", str, path, where)
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\0" in name:
        raise ShardSetError(
            f"{path}: {where}.path is {name!r}, which is not a path inside the set's folder"
        )
    if not _is_count(samples) or not _is_count(size):
        raise ShardSetError(f"{path}: {where}: 'samples' and 'bytes' must not be negative")
    assert isinstance(entry, dict)
    index = _take(entry, "index", str, path, where) if "index" in entry else ""
    for label, text in (("sha256", digest), ("index", index)):
        if (text or label == "sha256") and not _is_digest(text):
            raise ShardSetError(f"{path}: {where}.{label} must be 64 hexadecimal digits")
    # Only buckets read what it says: it is long, and takes time.
    aspects = _take(entry, "aspects", str, path, where) if "aspects" in entry else ""
    return Shard(name, samples, size, digest, index, aspects)


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
