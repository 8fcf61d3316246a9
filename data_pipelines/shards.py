"""Random access into WebDataset tars: memory-mapped, by their index or, once, their headers."""

import json
import mmap
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.manifest import Shard, ShardSetError
from data_pipelines.shard_index import CLS, IMAGE, IMAGE_EXTENSIONS, JSON, TXT, ShardIndex
from data_pipelines.store import ShardHandle, ShardStore

MAX_TEXT_BYTES = 2**20
MAX_IMAGE_BYTES = 2**28
_TOLD = {"class", "caption", "width", "height", "synthetic"}  # what has a place of its own


class SampleError(ValueError):
    """One sample cannot be used; the loader counts it and puts a neighbour in its place.

    Attributes:
        shard: Path of the sample's shard.
        key: Key of the sample.
        reason: What is wrong.
    """

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(f"{shard}: sample {key!r}: {reason}")
        self.shard, self.key, self.reason = shard, key, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.shard, self.key, self.reason)


@dataclass(frozen=True)
class RawSample:
    """A sample as stored.

    Attributes:
        key: The members' common name.
        image: The encoded image.
        extension: Its extension, lower case.
        caption: Text, where known.
        class_: Class name or number, where known.
        width: Width in pixels as stated by the metadata, where stated.
        height: Height likewise.
        synthetic: Whether the metadata says that a model made the image.
        fields: What else the metadata says (JSON values).
    """

    key: str
    image: bytes
    extension: str
    caption: str | None
    class_: str | int | None
    width: int | None
    height: int | None
    synthetic: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """Any field of the metadata by its name there; None where it is not."""
        own = {"class": self.class_, "caption": self.caption, "synthetic": self.synthetic}
        own |= {"width": self.width, "height": self.height}
        return own[name] if name in own else self.fields.get(name)


class OpenShard:
    """One memory-mapped tar and its index.

    Args:
        path: The tar, uncompressed.
        index: What is in it; read from its headers if not given.

    Raises:
        ShardSetError: The file is not a whole, uncompressed tar.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, index: ShardIndex | None = None) -> None:
        self.path = path
        self.index = ShardIndex.scan(path) if index is None else index
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.index)

    def key(self, index: int) -> str:
        """Returns the key of a sample."""
        return self.index.key(index)

    def close(self) -> None:
        """Unmaps the file."""
        self._map.close()

    def read(self, index: int, shard: str) -> RawSample:
        """Reads one sample.

        Args:
            index: Number of the sample in this tar.
            shard: The shard's name, for messages.

        Raises:
            SampleError: It has no image, or unreadable or contradictory metadata.
        """
        key = self.key(index)
        try:
            if index in self.index.repeated:
                raise ValueError("one of its members appears twice")
            image = self._bytes(index, IMAGE, MAX_IMAGE_BYTES)
            if image is None:
                raise ValueError(f"no image (.{', .'.join(IMAGE_EXTENSIONS)}) among its members")
            extension = IMAGE_EXTENSIONS[self.index.extensions[index]]
            return RawSample(key, image, extension, **self._metadata(index))
        except ValueError as error:
            raise SampleError(shard, key, str(error)) from None

    def _metadata(self, index: int) -> dict[str, Any]:
        document: dict[str, Any] = {}
        encoded = self._bytes(index, JSON, MAX_TEXT_BYTES)
        if encoded is not None:
            try:
                document = json.loads(encoded)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"its .json is not valid JSON ({error})") from None
            if not isinstance(document, dict):
                raise ValueError("its .json is not a JSON object")
        class_, caption = document.get("class"), document.get("caption")
        if class_ is None:
            class_ = self._class_member(index)
        if caption is None:
            text = self._bytes(index, TXT, MAX_TEXT_BYTES)
            caption = None if text is None else text.decode("utf-8", "replace").strip()
        if not _is_or_none(class_, (str, int)):
            raise ValueError(f"its class is a {type(class_).__name__}, not a name or a number")
        if not _is_or_none(caption, str):
            raise ValueError(f"its caption is a {type(caption).__name__}, not text")
        size = {name: document.get(name) for name in ("width", "height")}
        for name, value in size.items():
            if not _is_or_none(value, int):
                raise ValueError(f"its {name} is {value!r}, not an integer")
        synthetic = document.get("synthetic")
        if synthetic is not None and not isinstance(synthetic, bool):
            raise ValueError(f"its synthetic is a {type(synthetic).__name__}, not true or false")
        others = {name: value for name, value in document.items() if name not in _TOLD}
        return {
            "class_": class_,
            "caption": caption,
            **size,
            "synthetic": bool(synthetic),
            "fields": others,
        }

    def _class_member(self, index: int) -> str | int | None:
        encoded = self._bytes(index, CLS, MAX_TEXT_BYTES)
        if encoded is None:
            return None
        text = encoded.decode("utf-8", "replace").strip()
        return int(text) if text.isascii() and text.isdigit() else text

    def _bytes(self, index: int, slot: int, limit: int) -> bytes | None:
        offset, size = (int(value) for value in self.index.places[index, slot])
        if offset < 0:
            return None
        if size > limit:
            raise ValueError(f"a member has {size} bytes; the limit for its kind is {limit}")
        return self._map[offset : offset + size]


def _is_or_none(value: object, kind: type | tuple[type, ...]) -> bool:
    return value is None or (isinstance(value, kind) and not isinstance(value, bool))


class ShardReader:
    """Reads sample `index` of shard `shard` of a set; shards are opened on first use.

    It can be sent to worker processes: open files stay behind, each process opens its own.

    Args:
        store: The set's shards.
        max_open: Shards kept open (each a file descriptor); the least recently used is closed. As
            many indices are kept in memory.

    Attributes:
        beside: The readers of the other sets that one thread reads in turn with this one; those
            that may share its cache. They are closed where a shard needs their room.
    """

    def __init__(self, store: ShardStore, *, max_open: int = 256) -> None:
        if max_open < 1:
            raise ValueError(f"max_open is {max_open}; it must be at least 1")
        self.store = store
        self.max_open = max_open
        self.beside: Sequence[ShardReader] = ()
        self._open: OrderedDict[int, tuple[OpenShard, ShardHandle]] = OrderedDict()
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_indices": OrderedDict()}

    def read(self, shard: int, index: int) -> RawSample:
        """Reads one sample.

        Raises:
            SampleError: The sample has no image, or bad metadata.
            ShardSetError: The shard cannot be read or holds another number of samples than the
                manifest says.
        """
        sample = self.opened(shard).read(index, self.store.manifest.shards[shard].path)
        self.store.counts.bytes_read += len(sample.image)
        return sample

    def key(self, shard: int, index: int) -> str:
        """Returns a sample's key without reading the sample."""
        return self.opened(shard).key(index)

    def close(self) -> None:
        """Closes all shards; the next read opens them again."""
        while self._open:
            _close(*self._open.popitem()[1])

    def _give_up(self) -> None:
        for reader in (self, *self.beside):
            reader.rest()

    def rest(self) -> None:
        """Closes the shards that others may need the room of; call it between batches.

        Those of a folder stay open. Those of a cache are held there while they are open, and are
        quickly opened again, since their indices stay.
        """
        if self.store.bounded:
            self.close()

    def opened(self, shard: int) -> OpenShard:
        """The open shard, to be used before the next one is asked for.

        Raises:
            ShardSetError: As `read`.
        """
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard][0]
        if len(self._open) >= self.max_open:
            _close(*self._open.popitem(last=False)[1])
        handle = self.store.local(shard, full=self._give_up)
        try:
            tar = self._open_tar(shard, handle.path)
        except BaseException:
            handle.close()
            raise
        self._open[shard] = tar, handle
        return tar

    def _open_tar(self, shard: int, path: Path) -> OpenShard:
        entry = self.store.manifest.shards[shard]
        index = self._index(shard, path)
        if len(index) != entry.samples:
            raise ShardSetError(
                f"{path}: holds {len(index)} samples but the manifest says {entry.samples}; "
                f"{self._remedy}"
            )
        try:
            _check_size(path, entry)
            return OpenShard(path, index)
        except OSError as error:
            raise ShardSetError(
                f"{path}: cannot be opened ({error.strerror or error}); {self._remedy}"
            ) from None

    def _index(self, shard: int, path: Path) -> ShardIndex:
        if shard in self._indices:
            self._indices.move_to_end(shard)
            return self._indices[shard]
        index = self.store.index(shard)
        if index is None:
            try:
                index = ShardIndex.scan(path)
            except OSError as error:
                raise ShardSetError(
                    f"{path}: cannot be opened ({error.strerror}); {self._remedy}"
                ) from None
        elif index.sha256 != self.store.manifest.shards[shard].sha256:
            raise ShardSetError(
                f"{path}: its index file is of another version of the shard; {self._remedy}"
            )
        self._indices[shard] = index
        if len(self._indices) > self.max_open:
            self._indices.popitem(last=False)
        return index

    @property
    def _remedy(self) -> str:
        return (
            "restore the file, or accept what is there with "
            f"`simple-diffusion data index {self.store.root}`"
        )


def _check_size(path: Path, entry: Shard) -> None:
    """Refuses a tar that is not the one of the index, whose bytes would be other samples'."""
    size = os.stat(path).st_size
    if size != entry.bytes:
        raise OSError(f"it has {size} bytes, not the {entry.bytes} that the manifest says")


def _close(tar: OpenShard, handle: ShardHandle) -> None:
    tar.close()
    handle.close()
