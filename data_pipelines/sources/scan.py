"""A look at every image before the listing: in parallel, remembered, the same for any worker count.

What a scan finds is kept part by part in a folder, so that a build that was stopped does not look
again at the parts that were done.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from data_pipelines.sample import Rejected
from data_pipelines.sources.base import Item
from data_pipelines.workers import Tick, run_tasks

P = TypeVar("P")
PART = 1024  # items whose digests are one part


def scan_part(folder: Path | None, number: int, look: Callable[[P], Any], part: P) -> Any:
    """What `look(part)` returns (a JSON value): remembered, or found and, with a folder, kept."""
    if folder is None:
        return look(part)
    path = folder / f"{number:08d}.json"
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # or cut short by a power failure
        found = look(part)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(found), encoding="utf-8")
    os.replace(temporary, path)
    return found


def scan_all(
    folder: Path,
    look: Callable[[P], Any],
    parts: Sequence[P],
    *,
    workers: int,
    progress: bool,
    title: str,
) -> None:
    """Looks at all parts that are not remembered yet, `workers` at a time.

    Args:
        folder: Where the results are kept; created.
        look: Picklable if there are several workers.
        parts: What to look at, always the same for one folder.
        workers: Processes; 1 works in this one.
        progress: Show a progress bar on a terminal.
        title: Its title.

    Raises:
        ShardSetError: A part cannot be looked at, or its processes died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=len(parts), desc=title, unit=" parts", disable=None if progress else True
    ) as bar:
        run_tasks(
            partial(_scan_numbered, folder, look),
            list(enumerate(parts)),
            workers=workers,
            name=lambda task: f"{title}, part {task[0]}",
            on_result=lambda task, result: bar.update(),
        )


def _scan_numbered(folder: Path, look: Callable[[P], Any], task: tuple[int, P], tick: Tick) -> None:
    scan_part(folder, task[0], look, task[1])


def cut(listing: Iterable[Item | Rejected]) -> Iterator[tuple[list[Item | Rejected], list[Item]]]:
    """Cuts a listing into parts of PART items: all entries of a part, and its items alone."""
    entries: list[Item | Rejected] = []
    items: list[Item] = []
    for entry in listing:
        entries.append(entry)
        if isinstance(entry, Item):
            items.append(entry)
        if len(items) == PART:
            yield entries, items
            entries, items = [], []
    yield entries, items


class Duplicates:
    """The content hashes seen so far. The first image with some content stays.

    It needs about 200 bytes of memory an image.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def refuse(self, digest: str | None, name: str) -> str | None:
        """Why an image is left out; None if its content is new, or could not be read."""
        if digest is None:
            return None
        content = bytes.fromhex(digest)
        first = self._first.get(content)
        if first is None:
            self._first[content] = name
            return None
        return f"duplicate: the same bytes as {first}"


def without_duplicates(
    listing: Iterable[Item | Rejected],
    look: Callable[[list[Item]], list[str | None]],
    folder: Path | None,
    name: Callable[[Item], str],
) -> Iterator[Item | Rejected]:
    """A listing without the items whose image has the same bytes as an earlier one's.

    Args:
        listing: Items and what has been left out.
        look: Digests of the images of a part.
        folder: Where they are remembered, if anywhere.
        name: What to call an item.
    """
    seen = Duplicates()
    for number, (entries, items) in enumerate(cut(listing)):
        digests = iter(scan_part(folder, number, look, items))
        for entry in entries:
            if isinstance(entry, Item):
                reason = seen.refuse(next(digests), name(entry))
                entry = entry if reason is None else Rejected(name(entry), reason)
            yield entry
