"""Manifest and index files for tars that others made (img2dataset's too), or that changed."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines.aspects import aspect_counts
from data_pipelines.building.printable import printable
from data_pipelines.decode import DecodeError, probe
from data_pipelines.manifest import MANIFEST_NAME, Manifest, Shard, ShardSetError
from data_pipelines.progress import manual_bar
from data_pipelines.shard_index import index_path
from data_pipelines.shards import OpenShard, RawSample, SampleError
from data_pipelines.workers import Tick, check_workers, run_tasks

_MAX_CLASS_NUMBER = 2**16
_MAX_SIDE = 2**31 - 1
_BLOCK = 2**20


@dataclass(frozen=True)
class IndexReport:
    """What indexing found.

    Attributes:
        root: The set's folder.
        manifest: The manifest that was written.
        bad: Samples without a readable image or with bad metadata; the loader will replace them.
    """

    root: Path
    manifest: Manifest
    bad: tuple[SampleError, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.root}: {self.manifest.num_samples} samples in {len(self.manifest.shards)} "
            f"shards, {len(self.manifest.classes)} classes"
            + (f", {self.manifest.synthetic} synthetic" if self.manifest.synthetic else "")
        ]
        if self.bad:
            lines.append(f"  {len(self.bad)} samples cannot be used and will be replaced:")
            lines += [f"    {error}" for error in self.bad[:20]]
            if len(self.bad) > 20:
                lines.append(f"    and {len(self.bad) - 20} more")
        return printable("\n".join(lines))


def index_shards(root: Path | str, *, workers: int = 1, progress: bool = True) -> IndexReport:
    """Reads all tars below a folder once; writes an index file for each and the folder's manifest.

    Sub-folders with a manifest of their own, such as a held-out part, are left alone. If there is
    a manifest already, its class order, licence and source are kept, so labels keep their meaning.
    Classes that are numbers keep them as labels. Sizes in pixels are taken from the samples'
    metadata, or else from the images' headers.

    Args:
        root: The folder.
        workers: Processes; the result does not depend on their number.
        progress: Show a progress bar.

    Raises:
        ShardSetError: There is no such folder, no tar in it, no sample in them, or a damaged tar.
    """
    root = Path(root)
    check_workers(workers)
    if not root.is_dir():
        raise ShardSetError(f"{root}: there is no such folder")
    names = sorted(path.relative_to(root).as_posix() for path in _tars(root))
    if not names:
        raise ShardSetError(
            f"{root}: no .tar files to index; build a set with `simple-diffusion data build`"
        )
    found: dict[str, _Found] = {}
    with manual_bar(len(names), str(root), progress, unit="shards") as bar:

        def on_result(name: str, one: _Found) -> None:
            found[name] = one
            bar.update()

        run_tasks(partial(_index_tar, root), names, workers=workers, name=str, on_result=on_result)
    everything = [found[name] for name in names]
    counts, synthetic = Counter[str | int](), 0
    for one in everything:
        counts.update(one.classes)
        synthetic += one.synthetic
    shards = [one.shard for one in everything]
    if not any(shard.samples for shard in shards):
        raise ShardSetError(f"{root}: its {len(shards)} tars hold no samples")
    manifest = _manifest(root, shards, counts, synthetic)
    manifest.save(root)
    return IndexReport(root, manifest, tuple(error for one in everything for error in one.bad))


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class _Found:
    """What is in one tar."""

    shard: Shard
    classes: Counter[str | int] = field(default_factory=Counter)
    synthetic: int = 0
    bad: list[SampleError] = field(default_factory=list)


def _index_tar(root: Path, name: str, tick: Tick) -> _Found:
    """Reads a tar and writes its index file."""
    path = root / name
    digest = checksum(path)
    tar = OpenShard(path)
    sizes = np.zeros((len(tar), 2), dtype=np.int32)
    found = _Found(Shard(name, len(tar), path.stat().st_size, digest))
    for number in range(len(tar)):
        try:
            sample = tar.read(number, name)
            sizes[number] = _size(sample)
        except SampleError as error:
            found.bad.append(error)
            continue
        except DecodeError as error:
            found.bad.append(SampleError(name, sample.key, str(error)))
        found.synthetic += sample.synthetic
        if sample.class_ is not None:
            found.classes[sample.class_] += 1
    tar.close()
    widths, heights = sizes.T
    found.shard = Shard(
        name,
        len(tar),
        found.shard.bytes,
        digest,
        index=tar.index.described(widths, heights, digest).save(index_path(path)),
        aspects=aspect_counts(widths, heights),
    )
    return found


def _size(sample: RawSample) -> tuple[int, int]:
    """The upright size in pixels that the metadata or, failing that, the header states."""
    width, height = sample.width, sample.height
    if width and height and 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE:
        return width, height
    info = probe(sample.image)
    return info.width, info.height


def _tars(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            if not (path / MANIFEST_NAME).exists():
                yield from _tars(path)
        elif path.suffix == ".tar":
            yield path


def _manifest(
    root: Path, shards: list[Shard], counts: Counter[str | int], synthetic: int
) -> Manifest:
    known: tuple[str, ...] = ()
    licence, source = "not stated", f"tars of the folder {root.resolve().name}"
    if (root / MANIFEST_NAME).exists():
        try:
            old = Manifest.parse(root)
        except ShardSetError:
            pass  # it is about to be replaced, most likely for this very reason
        else:
            known, licence, source = old.classes, old.licence, old.source
    by_name = Counter[str]()
    for class_, count in counts.items():
        by_name[str(class_)] += count
    classes = known + tuple(name for name in _class_names(counts) if name not in known)
    return Manifest(
        shards=tuple(shards),
        classes=classes,
        class_counts=tuple(by_name[name] for name in classes),
        licence=licence,
        source=source,
        recipe={"builder": "index"},
        synthetic=synthetic,
    )


def _class_names(counts: Counter[str | int]) -> list[str]:
    """Sorts the class names; numbers become 0, 1, ... without gaps, so they stay the labels."""
    numbers = [class_ for class_ in counts if isinstance(class_, int)]
    if numbers and len(numbers) == len(counts) and min(numbers) >= 0:
        if max(numbers) >= _MAX_CLASS_NUMBER:
            raise ShardSetError(
                f"class number {max(numbers)} is too large; numbers must be below "
                f"{_MAX_CLASS_NUMBER}"
            )
        return [str(number) for number in range(max(numbers) + 1)]
    return sorted({str(class_) for class_ in counts})
