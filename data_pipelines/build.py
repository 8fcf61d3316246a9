"""Samples -> a shard set: WebDataset tars, a manifest, and, if asked, a held-out part.

Everything is written to `OUT.partial` and renamed at the very end, so that an interrupted build
leaves nothing that looks complete. Times and owners in the tars are fixed: the same samples give
the same bytes.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm
from webdataset import TarWriter

from data_pipelines.manifest import MANIFEST_NAME, Manifest, Shard, ShardSetError

T = TypeVar("T")

VALIDATION = "validation"
_SHARD_NAME = re.compile(r"shard-\d{6}\.tar")
_RESERVE_BYTES = 16 * 2**20  # left free on the disk
_CHECK_EVERY = 256  # samples between two looks at the free space


@dataclass(frozen=True)
class Sample:
    """An image ready to be stored.

    Attributes:
        key: Unique name without dots.
        image: The encoded image.
        extension: Its extension, such as "png".
        width: Upright width in pixels.
        height: Upright height in pixels.
        class_: Class name, where known.
        caption: Text, where known.
        synthetic: Whether a model made the image.
    """

    key: str
    image: bytes
    extension: str
    width: int
    height: int
    class_: str | None = None
    caption: str | None = None
    synthetic: bool = False


@dataclass(frozen=True)
class Rejected:
    """A source item that did not become a sample, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class BuildReport:
    """What a build wrote, or found written already.

    Attributes:
        out: The set's folder.
        manifest: Manifest of the training part.
        validation: Manifest of the held-out part, if there is one.
        rejected: Items that were left out.
        reused: Whether a complete set of the same recipe was there already.
    """

    out: Path
    manifest: Manifest
    validation: Manifest | None
    rejected: tuple[Rejected, ...]
    reused: bool

    def __str__(self) -> str:
        lines = [f"{self.out}: complete already, nothing to do" if self.reused else f"{self.out}:"]
        parts = [("training", self.manifest), ("validation", self.validation)]
        for name, manifest in parts:
            if manifest is not None:
                size = sum(shard.bytes for shard in manifest.shards) / 2**20
                made = f", {manifest.synthetic} synthetic" if manifest.synthetic else ""
                lines.append(
                    f"  {name}: {manifest.num_samples} images in {len(manifest.shards)} shard(s), "
                    f"{size:.1f} MiB, {sum(map(bool, manifest.class_counts))} classes{made}"
                )
        if self.rejected:
            lines.append(f"  rejected: {len(self.rejected)}")
            lines += [f"    {item.name}: {item.reason}" for item in self.rejected[:20]]
            if len(self.rejected) > 20:
                lines.append(f"    and {len(self.rejected) - 20} more")
        return "\n".join(lines)


def write_shards(
    samples: Callable[[], Iterable[Sample | Rejected]],
    out: Path | str,
    *,
    source: str,
    licence: str,
    recipe: Mapping[str, Any],
    classes: Sequence[str] | None = None,
    shard_samples: int = 1000,
    validation: float = 0.0,
    overwrite: bool = False,
    total: int | None = None,
    progress: bool = True,
) -> BuildReport:
    """Writes a shard set, or reuses one that the same recipe wrote.

    Args:
        samples: Called, if there is anything to build, for the samples and the rejected items, in
            a fixed order.
        out: Folder to create. It may exist if it is empty, or a set that this function wrote.
        source: Where the images came from, for people.
        licence: Note on what the images may be used for.
        recipe: All that decides the samples (JSON values); the writer's own options are added.
        classes: Class names in the order of their labels, with or without samples; by default
            those of the samples, sorted.
        shard_samples: Samples in a shard.
        validation: Share of samples, chosen by a hash of their keys, that go to `out/validation`.
        overwrite: Replace a set of another recipe instead of refusing.
        total: Expected number of items, for the progress bar and the disk check.
        progress: Show a progress bar.

    Raises:
        ShardSetError: `out` holds something else, the disk is full, or no usable sample came.
        ValueError: An option is out of range, two samples have one key, or a sample's class is
            not in `classes`.
    """
    out = Path(out)
    if shard_samples < 1:
        raise ValueError(f"shard_samples is {shard_samples}; it must be at least 1")
    if not 0.0 <= validation < 1.0:
        raise ValueError(f"validation is {validation}; it must be a share in [0, 1)")
    recipe = {**recipe, "shard_samples": shard_samples, "validation": validation}
    if classes is not None:
        recipe["class_list"] = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
    finished = _existing(out, recipe, overwrite)
    if finished is not None:
        return finished
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    build = _Build(partial, shard_samples, validation, out, classes)
    try:
        partial.mkdir(parents=True)
        bar = progress_bar(samples(), total, str(out), progress)
        for done, item in enumerate(bar):
            if done % _CHECK_EVERY == 0:
                build.check_disk(done, total)
            build.add(item)
        report = build.finish(source, licence, recipe)
        _remove_set(out)
        os.replace(partial, out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ShardSetError(
                f"{out}: no space left on the disk ({error.strerror}); free some or choose another "
                "folder. Nothing was left behind"
            ) from None
        raise
    finally:
        build.abandon()
        shutil.rmtree(partial, ignore_errors=True)  # gone already if all went well
    return report


def progress_bar(
    items: Iterable[T], total: int | None, title: str, shown: bool, unit: str = "images"
) -> Iterable[T]:
    """Shows progress through `items` on a terminal; silent if `shown` is false or in a log."""
    hidden = None if shown else True
    bar: Iterable[T] = tqdm(items, total=total, unit=f" {unit}", desc=title, disable=hidden)
    return bar


class _Build:
    """The part of a set that has been written so far."""

    def __init__(
        self,
        partial: Path,
        shard_samples: int,
        validation: float,
        out: Path,
        classes: Sequence[str] | None,
    ) -> None:
        self._partial, self._out = partial, out
        self._share = validation
        self._classes = None if classes is None else tuple(classes)
        self._known = None if classes is None else {None, *classes}
        if classes is not None and len(set(classes)) != len(classes):
            raise ValueError(f"{out}: the list of classes names one twice")
        self._train = _ShardWriter(partial, shard_samples)
        self._held = _ShardWriter(partial / VALIDATION, shard_samples)
        self._keys: set[str] = set()
        self._rejected: list[Rejected] = []

    def check_disk(self, done: int, total: int | None) -> None:
        written = self._train.bytes + self._held.bytes
        expected = written / done * (total - done) if done and total is not None else 0
        needed = int(expected) + _RESERVE_BYTES
        free = shutil.disk_usage(self._partial).free
        if free < needed:
            raise ShardSetError(
                f"{self._out}: about {needed / 2**20:.0f} MiB more are needed but the disk has "
                f"{free / 2**20:.0f} MiB free; free some or choose another folder. Nothing was "
                "left behind"
            )

    def add(self, item: Sample | Rejected) -> None:
        if isinstance(item, Rejected):
            self._rejected.append(item)
            return
        if item.key in self._keys:
            raise ValueError(f"{self._out}: two samples have the key {item.key!r}")
        if self._known is not None and item.class_ not in self._known:
            raise ValueError(
                f"{self._out}: sample {item.key!r} has the class {item.class_!r}, which is not in "
                "the list of classes"
            )
        self._keys.add(item.key)
        held = _share_of(item.key) < self._share
        (self._held if held else self._train).add(item)

    def finish(self, source: str, licence: str, recipe: Mapping[str, Any]) -> BuildReport:
        self._train.finish()
        self._held.finish()
        counts = self._train.classes + self._held.classes
        classes = tuple(sorted(counts)) if self._classes is None else self._classes
        if not self._train.shards:
            raise ShardSetError(
                f"{self._out}: no usable image came from {source}"
                + "".join(f"; {item.name}: {item.reason}" for item in self._rejected[:5])
            )
        if self._share and not self._held.shards:
            raise ShardSetError(
                f"{self._out}: a validation share of {self._share} of {len(self._keys)} images "
                "came to none; use a larger share"
            )
        manifests = [
            Manifest(
                shards=tuple(part.shards),
                classes=classes,
                class_counts=tuple(part.classes[name] for name in classes),
                licence=licence,
                source=source,
                recipe=recipe,
                synthetic=part.synthetic,
            )
            for part in (self._train, self._held)
        ]
        if self._share:
            manifests[1].save(self._partial / VALIDATION)
        manifests[0].save(self._partial)
        held = manifests[1] if self._share else None
        return BuildReport(self._out, manifests[0], held, tuple(self._rejected), reused=False)

    def abandon(self) -> None:
        """Closes unfinished shards, which are of no use any more."""
        self._train.abandon()
        self._held.abandon()


class _ShardWriter:
    """Writes samples to `shard-000000.tar`, `shard-000001.tar`, ... in a folder."""

    def __init__(self, folder: Path, shard_samples: int) -> None:
        self._folder, self._shard_samples = folder, shard_samples
        self.shards: list[Shard] = []
        self.classes: Counter[str] = Counter()
        self.synthetic = 0
        self.bytes = 0
        self._file: _HashedFile | None = None
        self._tar: TarWriter | None = None
        self._count = 0

    def add(self, sample: Sample) -> None:
        if self._tar is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"shard-{len(self.shards):06d}.tar"
            self._file = _HashedFile(self._folder / name)
            # An integer time: a float would cost 1.5 KiB of extended header per member.
            self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False)
        known = {"class": sample.class_, "caption": sample.caption}
        metadata: dict[str, str | int]
        metadata = {name: value for name, value in known.items() if value is not None}
        metadata |= {"width": sample.width, "height": sample.height}
        if sample.synthetic:
            metadata["synthetic"] = True
            self.synthetic += 1
        self.bytes += self._tar.write(
            {
                "__key__": sample.key,
                sample.extension: sample.image,
                "json": json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode(),
            }
        )
        if sample.class_ is not None:
            self.classes[sample.class_] += 1
        self._count += 1
        if self._count == self._shard_samples:
            self.finish()

    def finish(self) -> None:
        """Completes the open shard, if there is one."""
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.finish()
        shard = Shard(self._file.path.name, self._count, self._file.size, self._file.digest)
        self.shards.append(shard)
        self._tar, self._file, self._count = None, None, 0

    def abandon(self) -> None:
        """Closes the open shard, if there is one, as it is."""
        if self._file is not None:
            self._file.abandon()


class _HashedFile(io.RawIOBase):
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


def _share_of(key: str) -> float:
    """Maps a key to [0, 1): the same image is held out at every size and in every build."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _existing(out: Path, recipe: Mapping[str, Any], overwrite: bool) -> BuildReport | None:
    """Returns the complete set at `out` if it can be reused, None if one is to be built.

    Raises:
        ShardSetError: `out` is something that may not be replaced.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise ShardSetError(f"{out}: is a file; choose another folder")
    if not any(out.iterdir()):
        return None
    foreign = [path for path in sorted(out.rglob("*")) if not _is_ours(path, out)]
    if foreign:
        raise ShardSetError(
            f"{out}: holds other things than a shard set built here (such as "
            f"{foreign[0].relative_to(out)}); choose another folder"
        )
    if overwrite:
        return None
    try:
        manifest = Manifest.load(out)
        held = Manifest.load(out / VALIDATION) if (out / VALIDATION).exists() else None
    except ShardSetError as error:
        raise ShardSetError(f"{error}. To build it anew, add --overwrite") from None
    if dict(manifest.recipe) != json.loads(json.dumps(recipe)):
        theirs = manifest.recipe
        keys = [key for key in {**theirs, **recipe} if theirs.get(key) != recipe.get(key)]
        changes = ", ".join(f"{key}: {theirs.get(key)!r} -> {recipe.get(key)!r}" for key in keys)
        raise ShardSetError(
            f"{out}: holds a set built otherwise ({changes}); choose another folder, or replace it "
            "with --overwrite"
        )
    return BuildReport(out, manifest, held, (), reused=True)


def _is_ours(path: Path, out: Path) -> bool:
    inside = path.relative_to(out).parts
    if inside[0] == VALIDATION:
        inside = inside[1:]
        if not inside:
            return path.is_dir()
    return len(inside) == 1 and bool(inside[0] == MANIFEST_NAME or _SHARD_NAME.fullmatch(inside[0]))


def _remove_set(out: Path) -> None:
    """Removes a set that `_existing` found to hold nothing but our files, manifests first."""
    if not out.exists():
        return
    for name in (MANIFEST_NAME, f"{VALIDATION}/{MANIFEST_NAME}"):
        (out / name).unlink(missing_ok=True)
    for path in sorted(out.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif _SHARD_NAME.fullmatch(path.name):
            path.unlink()
    out.rmdir()
