"""The shards of a build that are to be made: a file of items for each, in `OUT.partial/tasks`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_pipelines.building.set_folder import VALIDATION
from data_pipelines.building.writer import shard_name
from data_pipelines.manifest import ShardSetError
from data_pipelines.sources.base import Item

TRAIN = "train"
TASKS, RESULTS, SET = "tasks", "results", "set"  # folders in OUT.partial


class Task(NamedTuple):
    """One shard to be made.

    Attributes:
        part: "train" or "validation".
        number: The shard's number in its part.
        items: Number of listed items.
    """

    part: str
    number: int
    items: int

    @property
    def name(self) -> str:
        """A file name for it."""
        return f"{self.part}-{self.number:06d}"

    @property
    def shard(self) -> str:
        """The shard's path in the set."""
        prefix = f"{VALIDATION}/" if self.part == VALIDATION else ""
        return prefix + shard_name(self.number)


def read_items(folder: Path, task: Task) -> Iterator[Item]:
    """The items of a task, in order."""
    with open(folder / TASKS / f"{task.name}.jsonl", encoding="utf-8") as file:
        for line in file:
            yield Item(*json.loads(line))


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file that is either there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def parsing(path: Path) -> Iterator[Any]:
    """Gives what a file of a build says (JSON); its reader may find that it says something else.

    Raises:
        ShardSetError: It does.
        FileNotFoundError: There is none.
    """
    try:
        yield json.loads(path.read_bytes())
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ShardSetError(
            f"{path}: damaged, or of another release; begin the build anew with --overwrite"
        ) from None


class TaskFiles:
    """Writes items to one file for each shard."""

    def __init__(self, folder: Path, part: str, size: int) -> None:
        self._folder, self._part, self._size = folder, part, size
        self._file: IO[str] | None = None
        self.items = 0

    def add(self, item: Item) -> None:
        """Writes an item into the open file, or a new one."""
        if self.items % self._size == 0:
            self.close()
            task = Task(self._part, self.items // self._size, self._size)
            path = self._folder / TASKS / f"{task.name}.jsonl"
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115  # close()
        assert self._file is not None
        # ASCII: names of files need not be valid Unicode.
        fields = [item.key, item.place, item.class_, item.caption, item.group]
        self._file.write(json.dumps(fields) + "\n")
        self.items += 1

    def close(self) -> None:
        """Completes the open file."""
        if self._file is not None:
            self._file.close()
            self._file = None
