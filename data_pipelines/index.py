"""A manifest for tars that others made (img2dataset's included), or that changed."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.build import progress_bar
from data_pipelines.manifest import MANIFEST_NAME, Manifest, Shard, ShardSetError
from data_pipelines.shards import SampleError, TarIndex

_MAX_CLASS_NUMBER = 2**16
_BLOCK = 2**20


@dataclass(frozen=True)
class IndexReport:
    """What indexing found.

    Attributes:
        root: The set's folder.
        manifest: The manifest that was written.
        bad: Samples without an image or with bad metadata; the loader will replace them.
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
        return "\n".join(lines)


def index_shards(root: Path | str, *, progress: bool = True) -> IndexReport:
    """Reads all tars below a folder once and writes the folder's manifest.

    Sub-folders with a manifest of their own, such as a held-out part, are left alone. If there is
    a manifest already, its class order, licence and source are kept, so labels keep their meaning.
    Classes that are numbers keep them as labels.

    Raises:
        ShardSetError: There is no such folder, no tar in it, no sample in them, or a damaged tar.
    """
    root = Path(root)
    if not root.is_dir():
        raise ShardSetError(f"{root}: there is no such folder")
    paths = sorted(_tars(root))
    if not paths:
        raise ShardSetError(
            f"{root}: no .tar files to index; build a set with `simple-diffusion data build`"
        )
    shards, bad, counts, synthetic = [], [], Counter[str | int](), 0
    for path in progress_bar(paths, len(paths), str(root), progress, unit="shards"):
        name = path.relative_to(root).as_posix()
        index = TarIndex(path)
        for number in range(len(index)):
            try:
                sample = index.read(number, name)
            except SampleError as error:
                bad.append(error)
                continue
            synthetic += sample.synthetic
            if sample.class_ is not None:
                counts[sample.class_] += 1
        shards.append(Shard(name, len(index), path.stat().st_size, checksum(path)))
        index.close()
    if not any(shard.samples for shard in shards):
        raise ShardSetError(f"{root}: its {len(shards)} tars hold no samples")
    manifest = _manifest(root, shards, counts, synthetic)
    manifest.save(root)
    return IndexReport(root, manifest, tuple(bad))


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
