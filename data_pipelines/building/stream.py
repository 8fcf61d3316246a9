"""A stream of samples -> a shard set: WebDataset tars, a manifest, and, if asked, a held-out part.

Everything is written to `OUT.partial` and renamed at the very end, so that an interrupted build
leaves nothing that looks complete. For sources that can be listed ahead there is `build_set`, which
works in parallel and can be interrupted.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.building.printable import storable
from data_pipelines.building.report import BuildReport, Tally, check_parts
from data_pipelines.building.set_folder import (
    PLAN_NAME,
    VALIDATION,
    check_room,
    check_share,
    destination,
    disk_errors,
    existing_set,
    partial_folder,
    remove_set,
    share_of,
)
from data_pipelines.building.slurm import stop_left_over
from data_pipelines.building.tasks import SET
from data_pipelines.building.unfinished import clear, locked, remove_left_over, tidy
from data_pipelines.building.writer import ShardWriter, Written, manifest_of, shard_name
from data_pipelines.manifest import ShardSetError
from data_pipelines.progress import progress_bar
from data_pipelines.sample import Rejected, Sample

__all__ = ["VALIDATION", "BuildReport", "Rejected", "Sample", "write_shards"]

_CHECK_EVERY = 256  # samples between two looks at the free space
_LEFT = "Nothing was left behind"


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
        ShardSetError: `out` holds something else, the disk is full or cannot be written, another
            process is building the same set, or no usable sample came.
        ValueError: An option is out of range, a key cannot be used or two samples have the same,
            or a sample's class is not in `classes`.
    """
    out = destination(out)
    if shard_samples < 1:
        raise ValueError(f"shard_samples is {shard_samples}; it must be at least 1")
    check_share(validation)
    recipe = {**recipe, "shard_samples": shard_samples, "validation": validation}
    if classes is not None:
        recipe["class_list"] = hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()
    recipe = storable(recipe)
    partial = partial_folder(out)
    build = _Build(partial / SET, shard_samples, validation, out, classes)
    finished = existing_set(out, recipe, overwrite)
    if finished is not None:
        tidy(partial, out, recipe)
        return BuildReport(out, *finished, Tally(), reused=True)
    with disk_errors(out, partial, _LEFT), locked(partial, out):
        finished = existing_set(out, recipe, overwrite)  # it may have come before our turn did
        if finished is not None:
            remove_left_over(partial, recipe)
            return BuildReport(out, *finished, Tally(), reused=True)
        if (partial / PLAN_NAME).exists() and not overwrite:
            raise ShardSetError(
                f"{partial}: holds an unfinished build that can be continued; choose another "
                "folder, remove that one, or add --overwrite"
            )
        stop_left_over(partial)
        clear(partial, recipe)
        try:
            (partial / SET).mkdir()
            bar = progress_bar(samples(), total, str(out), progress)
            for done, item in enumerate(bar):
                if done % _CHECK_EVERY == 0:
                    build.check_disk(done, total)
                build.add(item)
            report = build.finish(source, licence, recipe)
            remove_set(out)
            os.replace(partial / SET, out)
        finally:
            build.abandon()
            shutil.rmtree(partial, ignore_errors=True)
    return report


class _Build:
    """The parts of a set that have been written so far."""

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
        self._train = _Part(partial, shard_samples)
        self._held = _Part(partial / VALIDATION, shard_samples)
        self._keys: set[str] = set()
        self._tally = Tally()

    def check_disk(self, done: int, total: int | None) -> None:
        written = self._train.bytes + self._held.bytes
        expected = written / done * (total - done) if done and total is not None else 0
        check_room(self._partial, expected, self._out, _LEFT)

    def add(self, item: Sample | Rejected) -> None:
        if isinstance(item, Sample):
            if item.key in self._keys:
                raise ValueError(f"{self._out}: two samples have the key {item.key!r}")
            if self._known is not None and item.class_ not in self._known:
                raise ValueError(
                    f"{self._out}: sample {item.key!r} has the class {item.class_!r}, which is not "
                    "in the list of classes"
                )
            self._keys.add(item.key)
            held = share_of(item.key) < self._share
            (self._held if held else self._train).add(item)
        self._tally.add(item)

    def finish(self, source: str, licence: str, recipe: Mapping[str, Any]) -> BuildReport:
        train, held = self._train.finish(), self._held.finish()
        counts = train.classes + held.classes
        classes = tuple(sorted(counts)) if self._classes is None else self._classes
        check_parts(source, len(train.shards), len(held.shards), self._share, self._tally)
        fields: dict[str, Any] = {"source": source, "licence": licence, "recipe": recipe}
        manifests = [manifest_of(part, classes=classes, **fields) for part in (train, held)]
        if self._share:
            manifests[1].save(self._partial / VALIDATION)
        manifests[0].save(self._partial)
        validation = manifests[1] if self._share else None
        return BuildReport(self._out, manifests[0], validation, self._tally, reused=False)

    def abandon(self) -> None:
        """Closes unfinished shards, which are of no use any more."""
        self._train.abandon()
        self._held.abandon()


class _Part:
    """Writes samples to `shard-000000.tar`, `shard-000001.tar`, ... in a folder."""

    def __init__(self, folder: Path, shard_samples: int) -> None:
        self._folder, self._shard_samples = folder, shard_samples
        self._written: list[Written] = []
        self._open: ShardWriter | None = None
        self.bytes = 0

    def add(self, sample: Sample) -> None:
        if self._open is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open = ShardWriter(self._folder / shard_name(len(self._written)))
        before = self._open.bytes
        self._open.add(sample)
        self.bytes += self._open.bytes - before
        if len(self._open) == self._shard_samples:
            self.finish()

    def finish(self) -> Written:
        """Completes the open shard, if there is one; returns what is complete."""
        if self._open is not None:
            self._written.append(self._open.finish())
            self._open = None
        return Written.joined(self._written)

    def abandon(self) -> None:
        """Gives up the open shard, if there is one."""
        if self._open is not None:
            self._open.abandon()
