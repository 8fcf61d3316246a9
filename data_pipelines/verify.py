"""Checks a shard set from checksums to pixels."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines.aspects import aspect_counts
from data_pipelines.building.printable import printable
from data_pipelines.decode import DecodeError, decode_pixels, probe
from data_pipelines.index import checksum
from data_pipelines.manifest import Manifest, Shard, ShardSetError
from data_pipelines.progress import manual_bar
from data_pipelines.shard_index import ShardIndex, index_path
from data_pipelines.shards import OpenShard, RawSample, SampleError
from data_pipelines.workers import Tick, check_workers, run_tasks


@dataclass(frozen=True)
class VerifyReport:
    """What verifying found.

    Attributes:
        root: The set's folder.
        samples: Number of samples that were decoded without complaint.
        problems: One line for each damage, naming shard and key.
    """

    root: Path
    samples: int
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        verdict = "sound" if self.sound else f"{len(self.problems)} problem(s)"
        lines = [f"{self.root}: {self.samples} samples decoded, {verdict}"]
        lines += [f"  {problem}" for problem in self.problems[:100]]
        if len(self.problems) > 100:
            lines.append(f"  and {len(self.problems) - 100} more")
        return printable("\n".join(lines))


def verify(root: Path | str, *, workers: int = 1, progress: bool = True) -> VerifyReport:
    """Compares every tar and index file with the manifest, and decodes every sample at full size.

    Args:
        root: Folder of the shard set.
        workers: Processes; the report does not depend on their number.
        progress: Show a progress bar.

    Raises:
        ShardSetError: There is no manifest that can be read. All else is reported.
    """
    root = Path(root)
    check_workers(workers)
    manifest = Manifest.parse(root)
    found: dict[int, _Found] = {}
    with manual_bar(manifest.num_samples, str(root), progress) as bar:
        run_tasks(
            partial(_verify_shard, root, frozenset(manifest.classes)),
            list(enumerate(manifest.shards)),
            workers=workers,
            name=lambda task: f"{root / task[1].path}",
            on_result=lambda task, one: found.update({task[0]: one}),
            on_tick=lambda done, rejected=(): bar.update(done),
        )
    problems: list[str] = []
    counts: Counter[str] = Counter()
    good = synthetic = 0
    for _, one in sorted(found.items()):
        problems += one.problems
        counts += one.classes
        good, synthetic = good + one.good, synthetic + one.synthetic
    if manifest.num_samples == 0:
        problems.append("the manifest names no samples")
    for name, stated in zip(manifest.classes, manifest.class_counts, strict=True):
        if counts[name] != stated:
            problems.append(f"class {name!r}: {counts[name]} samples; the manifest says {stated}")
    if synthetic != manifest.synthetic:
        problems.append(f"{synthetic} synthetic samples; the manifest says {manifest.synthetic}")
    return VerifyReport(root, good, tuple(problems))


@dataclass
class _Found:
    """What is in one shard, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)
    good: int = 0
    synthetic: int = 0


def _verify_shard(
    root: Path, classes: Collection[str], task: tuple[int, Shard], tick: Tick
) -> _Found:
    shard, path, found = task[1], root / task[1].path, _Found()
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            found.problems.append(f"{path}: {size} bytes; the manifest says {shard.bytes}")
        elif checksum(path) != shard.sha256:
            found.problems.append(f"{path}: its checksum is not the manifest's")
        tar = OpenShard(path)
    except ShardSetError as error:
        found.problems.append(str(error))
        return found
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        found.problems.append(f"{path}: cannot be read ({reason})")
        return found
    if len(tar) != shard.samples:
        found.problems.append(f"{path}: {len(tar)} samples; the manifest says {shard.samples}")
    index = _stored_index(path, shard, tar.index, found.problems)
    for number in range(len(tar)):
        _verify_sample(tar, number, shard.path, index, classes, found)
        tick(1)
    tar.close()
    return found


def _verify_sample(
    tar: OpenShard,
    number: int,
    shard: str,
    index: ShardIndex | None,
    classes: Collection[str],
    found: _Found,
) -> None:
    try:
        sample = tar.read(number, shard)
    except SampleError as error:
        found.problems.append(str(error))
        return
    found.synthetic += sample.synthetic
    if sample.class_ is not None:
        found.classes[str(sample.class_)] += 1
    indexed = (0, 0)
    if index is not None:
        indexed = int(index.widths[number]), int(index.heights[number])
    problem = _problem(sample, classes, indexed)
    if problem is None:
        found.good += 1
    else:
        found.problems.append(f"{shard}: sample {sample.key!r}: {problem}")


def _problem(sample: RawSample, classes: Collection[str], indexed: tuple[int, int]) -> str | None:
    """Decodes a sample and compares it with what is said of it; returns what is wrong."""
    if sample.class_ is not None and str(sample.class_) not in classes:
        return f"class {str(sample.class_)!r} is not in the manifest"
    try:
        decode_pixels(sample.image, covering=None)
        actual = probe(sample.image)
    except DecodeError as error:
        return str(error)
    size = f"{actual.width} x {actual.height} pixels"
    stated = (sample.width, sample.height)
    if None not in stated and stated != (actual.width, actual.height):
        return f"{size}; its .json says {stated[0]} x {stated[1]}"
    if all(indexed) and indexed != (actual.width, actual.height):
        return f"{size}; the index says {indexed[0]} x {indexed[1]}"
    return None


def _stored_index(
    path: Path, shard: Shard, actual: ShardIndex, problems: list[str]
) -> ShardIndex | None:
    """The shard's index file, if the manifest names one that is sound; else says what is wrong."""
    if not shard.index:
        return None
    place = index_path(path)
    try:
        if checksum(place) != shard.index:
            problems.append(f"{place}: its checksum is not the manifest's")
        index = ShardIndex.load(place, tar_bytes=path.stat().st_size)
    except ShardSetError as error:
        problems.append(str(error))
        return None
    except OSError as error:
        problems.append(f"{place}: cannot be read ({error.strerror})")
        return None
    if index.sha256 != shard.sha256:
        problems.append(f"{place}: of another version of the shard")
        return None
    if not _same_members(index, actual):
        problems.append(f"{place}: not what is in the shard")
        return None
    if shard.aspects and shard.aspects != aspect_counts(index.widths, index.heights):
        problems.append(f"{place}: other aspect ratios than the manifest says")
    return index


def _same_members(index: ShardIndex, actual: ShardIndex) -> bool:
    return (
        (index.keys, index.repeated) == (actual.keys, actual.repeated)
        and np.array_equal(index.key_ends, actual.key_ends)
        and np.array_equal(index.places, actual.places)
        and np.array_equal(index.extensions, actual.extensions)
    )
