"""One shard of a build: a pure function of the source and the shard's items."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from data_pipelines.building.report import Tally, kind_of
from data_pipelines.building.tasks import (
    RESULTS,
    SET,
    Task,
    parsing,
    read_items,
    write_atomically,
)
from data_pipelines.building.writer import ShardWriter, Written
from data_pipelines.decode import DecodeError
from data_pipelines.manifest import Shard, ShardSetError
from data_pipelines.sample import Rejected, Sample
from data_pipelines.shard_index import index_path
from data_pipelines.sources.base import ImageSource, Item
from data_pipelines.sources.reading import ITS_OWN_ERRORS
from data_pipelines.workers import Tick


def make_shard(source: ImageSource, folder: Path, task: Task, tick: Tick) -> None:
    """Makes a shard in the folder of an unfinished build; its result file is written last.

    Raises:
        ShardSetError: An item cannot be read now, though perhaps later.
        OSError: The shard cannot be written.
    """
    tally, writer = Tally(), None
    try:
        for item in read_items(folder, task):
            sample = read_sample(source, item)
            tally.add(sample)
            if isinstance(sample, Rejected):
                tick(1, (kind_of(sample.reason),))
                continue
            assert sample.key == item.key
            if writer is None:
                writer = ShardWriter(folder / SET / task.shard)
            writer.add(sample)
            tick(1)
        written = Written() if writer is None else writer.finish()
    except BaseException:
        if writer is not None:
            writer.abandon()
        raise
    document = {
        "shards": [asdict(shard) for shard in written.shards],
        "classes": dict(written.classes),
        "synthetic": written.synthetic,
        "tally": tally.document(),
    }
    write_atomically(folder / RESULTS / f"{task.name}.json", json.dumps(document))


def read_sample(source: ImageSource, item: Item) -> Sample | Rejected:
    """Reads an item; what is wrong with it becomes a reason to leave it out.

    Raises:
        ShardSetError: It cannot be read now, though perhaps later.
    """
    name = item.place if isinstance(item.place, str) else item.key
    try:
        sample = source.sample(item)
        if isinstance(sample, Sample):
            for text in (sample.class_, sample.caption):
                (text or "").encode()
        return sample
    except UnicodeEncodeError as error:
        return Rejected(name, f"its class or caption is not valid Unicode: {error}")
    except DecodeError as error:
        return Rejected(name, str(error))
    except OSError as error:
        if error.errno in ITS_OWN_ERRORS:
            return Rejected(name, error.strerror or str(error))
        raise ShardSetError(
            f"{name}: cannot be read ({error.strerror or error}); run the same command again when "
            "it can, or leave the item out of the source"
        ) from error


def read_result(folder: Path, task: Task) -> tuple[Written, Tally] | None:
    """What a task has made; None if it is yet to be done.

    Raises:
        ShardSetError: Its result file is not one of this release.
    """
    try:
        with parsing(folder / RESULTS / f"{task.name}.json") as document:
            shards = tuple(Shard(**fields) for fields in document["shards"])
            written = Written(shards, Counter(document["classes"]), document["synthetic"])
            tally = Tally.from_document(document["tally"])
    except FileNotFoundError:
        return None
    for shard in shards:
        path = folder / SET / task.shard
        if not path.exists() or path.stat().st_size != shard.bytes:
            return None  # somebody removed it
        if not index_path(path).exists():
            return None
    return written, tally
