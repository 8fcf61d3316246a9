"""A source that can be listed -> a shard set, by many workers, through kills and restarts.

The listing is cut into shards before any image is read. So each shard is a pure function of the
source and its items, and it does not matter who makes it, when, or how often: the set is the same
bytes for any number of workers, after any number of kills, on one machine or in a queue.
"""

import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipelines.building.executors import make_executor
from data_pipelines.building.make_shard import read_result
from data_pipelines.building.plan import Cut, Plan, make_plan
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
)
from data_pipelines.building.tasks import RESULTS, SET, TRAIN, Task
from data_pipelines.building.unfinished import (
    clear,
    existing_plan,
    locked,
    remove_left_over,
    remove_unfinished,
    scan_folder,
    tidy,
)
from data_pipelines.building.writer import Written, manifest_of
from data_pipelines.manifest import ShardSetError
from data_pipelines.progress import manual_bar, progress_bar
from data_pipelines.sources.base import ImageSource, LabelledSource, LocalSource, ScannedSource

DEFAULT_SHARD_BYTES = 10**9
_LOG = logging.getLogger(__name__)


def build_set(
    source: ImageSource,
    out: Path | str,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    shard_samples: int | None = None,
    validation: float = 0.0,
    split_by_group: bool = False,
    workers: int = 1,
    executor: str = "local",
    slurm_options: Mapping[str, object] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Builds a shard set, goes on with one that was interrupted, or reuses one that is complete.

    What is finished waits in `OUT.partial`; the same call goes on from there, with any number of
    workers and any executor.

    Args:
        source: The images.
        out: Folder to create. It may exist if it is empty, or a set that was built here.
        shard_bytes: About how large a shard is to be, judged by the first images.
        shard_samples: Listed items of a shard instead.
        validation: Share of samples to hold out into `out/validation`, by a hash of their keys.
        split_by_group: By a hash of their groups instead, so that no group is in both parts;
            samples without a group are not held out.
        workers: Processes, or with the executor "slurm" jobs in the queue at once.
        executor: "local" or "slurm".
        slurm_options: Of the Slurm jobs, see `SlurmExecutor`.
        overwrite: Replace a set, or an unfinished one, of another recipe instead of refusing.
        progress: Show a progress bar.

    Raises:
        ShardSetError: `out` holds something else, the disk is full or cannot be written, no usable
            sample came, another call is building the same set, or a shard could not be made.
        ValueError: An option is out of range or does not go with another, two items have one key,
            or a key cannot be used.
    """
    out = destination(out, source.read_paths if isinstance(source, LocalSource) else ())
    cut = _checked_cut(shard_bytes, shard_samples, validation, split_by_group)
    partial = partial_folder(out)
    runner = make_executor(executor, partial, workers, slurm_options or {})
    recipe = storable({**source.recipe(), **cut.recipe()})
    finished = existing_set(out, recipe, overwrite)
    if finished is not None:
        tidy(partial, out, recipe)
        return BuildReport(out, *finished, Tally(), reused=True)
    kept = f"What is finished is kept in {partial}; the same command goes on from there"
    with disk_errors(out, partial, kept), locked(partial, out):
        finished = existing_set(out, recipe, overwrite)  # it may have come before our turn did
        if finished is not None:
            remove_left_over(partial, recipe)
            return BuildReport(out, *finished, Tally(), reused=True)
        plan = existing_plan(partial, recipe, overwrite)
        if plan is None:
            clear(partial, recipe)
        with _told(out, kept):
            if isinstance(source, ScannedSource):
                scanners = workers if executor == "local" else 1
                scan = scan_folder(partial, recipe)
                source = source.prepared(scan, workers=scanners, progress=progress)
            if plan is None:
                plan = _new_plan(partial, source, cut, recipe, out, progress)
        tasks = plan.tasks()
        todo = [task for task in tasks if read_result(partial, task) is None]
        with _Watched(plan, tasks, todo, partial, out, kept, progress) as watched:
            runner.run(source, partial, todo, watched.on_tick, watched.on_result)
        return _finish(partial, out, source, plan, tasks)


def _checked_cut(
    shard_bytes: int, shard_samples: int | None, validation: float, by_group: bool
) -> Cut:
    check_share(validation)
    if shard_samples is not None:
        if shard_samples < 1:
            raise ValueError(f"shard_samples is {shard_samples}; it must be at least 1")
        if shard_bytes != DEFAULT_SHARD_BYTES:
            raise ValueError("shard_bytes and shard_samples exclude each other; give one of them")
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}; it must be at least 1")
    if by_group and not validation:
        raise ValueError(
            "a field to split by needs a validation share, which is 0; give one (--validation)"
        )
    return Cut(shard_bytes, shard_samples, validation, by_group)


def _new_plan(
    partial: Path,
    source: ImageSource,
    cut: Cut,
    recipe: Mapping[str, Any],
    out: Path,
    progress: bool,
) -> Plan:
    for folder in (RESULTS, SET, f"{SET}/{VALIDATION}"):
        (partial / folder).mkdir()
    listing = progress_bar(source.items(), None, f"{out}: listing", progress, unit="items")
    try:
        if isinstance(source, LabelledSource):
            _ = source.classes  # or what is wrong with them would be told after the last shard
        return make_plan(partial, source, listing, cut, json.loads(json.dumps(recipe)))
    except ValueError as error:
        if not isinstance(error.__cause__, OSError):  # the same call would find it again
            shutil.rmtree(partial)
        raise


@contextmanager
def _told(out: Path, kept: str) -> Iterator[None]:
    """Says when the look at the source is stopped that it need not begin anew."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"{out}: stopped while the images were listed. {kept}", file=sys.stderr)
        raise


class _Watched:
    """A build under way: its progress bar, room on the disk, and a word when it is stopped."""

    def __init__(
        self,
        plan: Plan,
        tasks: Sequence[Task],
        todo: Sequence[Task],
        partial: Path,
        out: Path,
        kept: str,
        progress: bool,
    ) -> None:
        total = sum(task.items for task in tasks)
        self._left = sum(task.items for task in todo)
        self._finished, self._shards = len(tasks) - len(todo), len(tasks)
        self._sample_bytes, self._made, self._made_bytes = plan.sample_bytes, 0, 0
        self._partial, self._out, self._kept = partial, out, kept
        self._rejected = Counter[str]()
        self._bar = manual_bar(total, str(out), progress, initial=total - self._left)
        self._room()

    def on_tick(self, done: int, rejected: Sequence[str] = ()) -> None:
        """Moves the bar."""
        if rejected:
            self._rejected.update(rejected)
            kinds = ", ".join(f"{n} {kind}" for kind, n in self._rejected.most_common(3))
            self._bar.set_postfix_str(f"rejected: {kinds}", refresh=False)
        self._bar.update(done)

    def on_result(self, task: Task) -> None:
        """Notes a finished shard."""
        self._finished += 1
        self._left -= task.items
        self._made += task.items
        path = self._partial / SET / task.shard
        self._made_bytes += path.stat().st_size if path.exists() else 0
        self._sample_bytes = self._made_bytes / self._made
        self._room()

    def _room(self) -> None:
        check_room(self._partial, self._left * self._sample_bytes, self._out, self._kept)

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._bar.close()
        if error is not None:
            remove_unfinished(self._partial)  # gigabytes, perhaps, on a disk that is full
            so_far = f"{self._finished} of {self._shards} shards are finished"
            if isinstance(error, KeyboardInterrupt):
                print(f"{self._out}: stopped, {so_far}. {self._kept}", file=sys.stderr)
            else:
                _LOG.warning("%s: %s. %s", self._out, so_far, self._kept)


def _finish(
    partial: Path, out: Path, source: ImageSource, plan: Plan, tasks: Sequence[Task]
) -> BuildReport:
    """Writes the manifests and gives the set its name."""
    parts: dict[str, list[Written]] = {TRAIN: [], VALIDATION: []}
    tally = plan.tally
    for task in tasks:
        result = read_result(partial, task)
        if result is None:
            raise ShardSetError(
                f"{partial / SET / task.shard}: has vanished; run the same command again"
            )
        parts[task.part].append(result[0])
        tally.merge(result[1])
    train, held = (Written.joined(part) for part in parts.values())
    share = plan.recipe["validation"]
    check_parts(source.title, len(train.shards), len(held.shards), share, tally)
    fields: dict[str, Any] = {
        "classes": _in_order(train.classes + held.classes, source),
        "source": source.title,
        "licence": source.licence,
        "recipe": plan.recipe,
    }
    manifest, validation = manifest_of(train, **fields), manifest_of(held, **fields)
    remove_unfinished(partial)
    if share:
        validation.save(partial / SET / VALIDATION)
    elif (partial / SET / VALIDATION).exists():
        (partial / SET / VALIDATION).rmdir()
    manifest.save(partial / SET)
    remove_set(out)
    os.replace(partial / SET, out)
    (partial / PLAN_NAME).unlink()  # first: nothing may be gone on with any more
    shutil.rmtree(partial)
    return BuildReport(
        out, manifest, validation if share else None, tally, reused=False, notes=plan.notes
    )


def _in_order(classes: Counter[str], source: ImageSource) -> list[str]:
    """The source's class names, then those of the samples that it did not name."""
    known = source.classes if isinstance(source, LabelledSource) else None
    return [*(known or ()), *sorted(set(classes) - set(known or ()))]
