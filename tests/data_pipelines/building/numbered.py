"""A source of numbered images for the tests of building, which can be told to go wrong."""

import errno
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import simplejpeg

from data_pipelines.decode import DecodeError, decode_upright
from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources.base import Item
from tests.data_pipelines.samples import encode, photo


@dataclass(frozen=True)
class Numbered:
    """`count` items; number n has key `k/n` and class n % 3, and every tenth cannot be decoded.

    Attributes:
        count: Number of items.
        name: Part of the recipe.
        groups: Group of item n is n % groups; 0 for none.
        killed: Item at which the worker that reads it is killed, as often as `kills` says.
        kills: Folder in which each killing is noted by a file, and how many there may be.
        killed_anywhere: Kill whatever process reads it.
        unreadable: Item that cannot be read for now.
        pause: Seconds that reading an item takes.
    """

    count: int = 60
    name: str = "numbered"
    groups: int = 0
    killed: int = -1
    kills: tuple[Path, int] = (Path(), 0)
    killed_anywhere: bool = False
    unreadable: int = -1
    pause: float = 0.0
    title: str = "numbers"
    licence: str = "none needed"

    def recipe(self) -> Mapping[str, Any]:
        return {"builder": "test", "name": self.name, "count": self.count, "groups": self.groups}

    def items(self) -> Iterator[Item | Rejected]:
        yield Rejected("*.txt", "not an image (7 of these files)")
        for n in range(self.count):
            yield Item(
                f"k/{n:03d}",
                n,
                f"class {n % 3}",
                f"number {n}",
                str(n % self.groups) if self.groups and n % 7 else None,
            )

    def sample(self, item: Item) -> Sample | Rejected:
        assert isinstance(item.place, int)
        n = item.place
        time.sleep(self.pause)
        in_worker = self.killed_anywhere or multiprocessing.parent_process()
        if n == self.killed and in_worker and self._may_kill():
            os.kill(os.getpid(), signal.SIGKILL)
        if n == self.unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if n % 10 == 9:
            raise DecodeError(f"damaged number {n % 20} (of {n})")
        if n % 10 == 8:
            return Rejected(f"item {n}", f"too small: {n} x {n}")
        jpeg, width, height = picture(n % 4)
        return Sample(item.key, jpeg, "jpg", width, height, item.class_, item.caption)

    def _may_kill(self) -> bool:
        folder, most = self.kills
        done = len(list(folder.glob("kill-*")))
        if done >= most:
            return False
        (folder / f"kill-{done}").touch()
        return True


@cache
def picture(kind: int) -> tuple[bytes, int, int]:
    """A JPEG that was scaled and encoded again: bytes that threads might change."""
    height, width = ((40, 60), (60, 40), (50, 50), (30, 100))[kind]
    pixels = decode_upright(encode(photo(height, width, kind)), 24)
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return simplejpeg.encode_jpeg(array, quality=90), array.shape[1], array.shape[0]


def contents(folder: Path) -> dict[str, str]:
    """Path in the folder -> SHA-256, of all files."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
