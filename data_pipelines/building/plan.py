"""A listing cut into shards, on disk: what is to be made, before any image is read.

`OUT.partial` holds `plan.json` (written last), one file of items for each shard in `tasks/`, the
shards so far in `set/`, and a small file in `results/` for each that is complete.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.building.make_shard import read_sample
from data_pipelines.building.report import Tally, check_parts
from data_pipelines.building.set_folder import PLAN_NAME, VALIDATION, key_hash, share_of
from data_pipelines.building.tasks import TASKS, TRAIN, Task, TaskFiles, parsing, write_atomically
from data_pipelines.building.writer import check_key
from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources.base import ImageSource, Item

_VERSION = 1  # of the files of an unfinished build; another one's are not gone on with
_MEASURED = 64  # listed items whose mean size decides how many make a shard
_TAR_BYTES = 512 + 256 + 512 + 512  # headers, padding and metadata of a sample, about


@dataclass(frozen=True)
class Cut:
    """How a listing is cut.

    Attributes:
        shard_bytes: About how large a shard is to be.
        shard_samples: Items of a shard instead, if given.
        validation: Share of samples to be held out.
        by_group: Whether whole groups are held out.
    """

    shard_bytes: int
    shard_samples: int | None
    validation: float
    by_group: bool

    def recipe(self) -> dict[str, Any]:
        """As JSON values."""
        size = (
            {"shard_bytes": self.shard_bytes}
            if self.shard_samples is None
            else {"shard_samples": self.shard_samples}
        )
        grouped = {"split_by_group": True} if self.by_group else {}
        return {**size, "validation": self.validation, **grouped}


@dataclass(frozen=True)
class Plan:
    """What a build has to make.

    Attributes:
        recipe: The set's recipe.
        shard_samples: Items of a shard.
        train: Number of listed items of the training part.
        held: Number of listed items of the held-out part.
        sample_bytes: About how many bytes a listed item will take; 0 where it was not measured.
        tally: What the listing left out.
        notes: Remarks for the report.
    """

    recipe: Mapping[str, Any]
    shard_samples: int
    train: int
    held: int
    sample_bytes: float
    tally: Tally
    notes: tuple[str, ...]

    def tasks(self) -> list[Task]:
        """All shards to be made."""
        size = self.shard_samples
        return [
            Task(part, number, min(size, items - start))
            for part, items in ((TRAIN, self.train), (VALIDATION, self.held))
            for number, start in enumerate(range(0, items, size))
        ]

    def save(self, folder: Path) -> None:
        """Writes the plan's file, which says that all tasks are on disk."""
        told = {"version": _VERSION, "tally": self.tally.document(), "notes": list(self.notes)}
        document = {**vars(self), **told}
        write_atomically(folder / PLAN_NAME, json.dumps(document, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Reads the plan that `save` wrote.

        Raises:
            ShardSetError: It is not one of this release.
        """
        with parsing(folder / PLAN_NAME) as document:
            if document.pop("version") != _VERSION:
                raise ValueError("another release's")
            tally, notes = Tally.from_document(document["tally"]), tuple(document["notes"])
            return cls(**{**document, "tally": tally, "notes": notes})


def make_plan(
    folder: Path, source: ImageSource, listing: Iterable[Item | Rejected], cut: Cut, recipe: Any
) -> Plan:
    """Writes the tasks of a listing, then the plan.

    Besides the open shards' items, 16 bytes are held of each item.

    Args:
        folder: The folder of the unfinished build.
        source: Where the items are from; if shards are to have a size in bytes, a few of the first
            items are read for theirs.
        listing: Its items.
        cut: How to cut it.
        recipe: The set's recipe.

    Raises:
        ShardSetError: There are no items, or the share held out is of none.
        ValueError: Two items have one key, a key cannot be used, or no item has a group to split
            by.
    """
    entries, size, mean = iter(listing), cut.shard_samples, 0.0
    if size is None:
        entries, mean = _measured(source, entries)
        size = max(1, int(cut.shard_bytes / mean))
    (folder / TASKS).mkdir()
    tally = Tally()
    train, held = TaskFiles(folder, TRAIN, size), TaskFiles(folder, VALIDATION, size)
    hashes = array("Q")
    grouped = 0
    for entry in entries:
        if isinstance(entry, Rejected):
            tally.add(entry)
            continue
        check_key(entry.key)
        hashes.append(key_hash(entry.key))
        share = share_of(entry.key)
        if cut.by_group:
            # Whose group is not known may be anybody's: never held out.
            share = 1.0 if entry.group is None else share_of(entry.group)
            grouped += entry.group is not None
        (held if share < cut.validation else train).add(entry)
    train.close()
    held.close()
    _check_unique(folder, np.frombuffer(hashes, np.uint64))
    notes: tuple[str, ...] = ()
    if cut.by_group and len(hashes):
        if not grouped:
            raise ValueError(
                f"{source.title}: no image has a value of the field to split by; name another field"
            )
        if grouped < len(hashes):
            lacking = len(hashes) - grouped
            notes = (f"listed without the field to split by: {lacking}, all kept for training",)
    check_parts(source.title, train.items, held.items, cut.validation, tally)
    plan = Plan(recipe, size, train.items, held.items, mean, tally, notes)
    plan.save(folder)
    return plan


def _measured(
    source: ImageSource, listing: Iterator[Item | Rejected]
) -> tuple[Iterator[Item | Rejected], float]:
    """Reads a few of the first items: the whole listing again, and what an item takes on average.

    Those that are left out count too: shards are cut by listed items.
    """
    first = list(islice(listing, _MEASURED))
    samples = [read_sample(source, item) for item in first if isinstance(item, Item)]
    sizes = [len(sample.image) + _TAR_BYTES for sample in samples if isinstance(sample, Sample)]
    mean = sum(sizes) / len(samples) if sizes else float(_TAR_BYTES)
    return chain(first, listing), mean


def _check_unique(folder: Path, hashes: NDArray[np.uint64]) -> None:
    """Refuses two items of one key."""
    ordered = np.sort(hashes)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    seen: dict[str, Any] = {}  # equal hashes may have different keys
    for path in sorted((folder / TASKS).iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            key, place, *_ = json.loads(line)
            if key_hash(key) not in repeated:
                continue
            if key in seen:
                raise ValueError(
                    f"two items have the key {key!r}: {seen[key]} and {place}; give one of them "
                    "another name or key, or leave it out"
                )
            seen[key] = place
