"""Random access into WebDataset tars: memory-mapped, indexed once by their headers."""

import json
import mmap
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.manifest import Manifest, ShardSetError

# In order of preference, should a sample hold several.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_FIELDS = ("json", "cls", "txt")
_IMAGE, _JSON, _CLS, _TXT = range(4)
MAX_TEXT_BYTES = 2**20
MAX_IMAGE_BYTES = 2**28
_DAMAGED_TAR = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, OSError)


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
    """

    key: str
    image: bytes
    extension: str
    caption: str | None
    class_: str | int | None
    width: int | None
    height: int | None
    synthetic: bool = False


class TarIndex:
    """One memory-mapped tar and where its samples lie.

    Members that share a key (directory, and name up to its first dot) form a sample, adjacent or
    not. Samples are numbered by the first appearance of their key. About 80 bytes and the key are
    kept per sample.

    Args:
        path: The tar, uncompressed.

    Raises:
        ShardSetError: The file is not a whole, uncompressed tar.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file cannot be mapped
                raise ShardSetError(f"{path}: the file is empty, not a tar") from None
            keys: dict[str, int] = {}
            places: list[list[tuple[int, int]]] = []
            images: list[int] = []  # rank in IMAGE_EXTENSIONS of the image found so far
            self.repeated: dict[int, str] = {}
            for name, offset, size in self._members(file):
                key, extension = split_name(name)
                if not key:
                    continue
                number = keys.setdefault(key, len(keys))
                if number == len(places):
                    places.append([(-1, 0)] * 4)
                    images.append(len(IMAGE_EXTENSIONS))
                if extension in IMAGE_EXTENSIONS:
                    slot, preference = _IMAGE, IMAGE_EXTENSIONS.index(extension)
                    if preference > images[number]:
                        continue
                    if preference == images[number]:
                        self.repeated[number] = name
                    images[number] = preference
                elif extension in _FIELDS:
                    slot = 1 + _FIELDS.index(extension)
                    if places[number][slot][0] >= 0:
                        self.repeated[number] = name
                else:
                    continue
                places[number][slot] = (offset, size)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 4, 2)
        self._images = np.array(images, dtype=np.uint8)
        encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
        self._key_ends = np.cumsum([len(key) for key in encoded], dtype=np.int64)
        self._keys = b"".join(encoded)

    def _members(self, file: Any) -> Iterator[tuple[str, int, int]]:
        """Yields (name, offset, size) of the regular files, checked to lie inside the tar."""
        length, end = len(self._map), 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    first, last = member.offset_data, member.offset_data + member.size
                    # A negative size would lead back and round for ever.
                    if tar.offset <= end or (member.isreg() and not first <= last <= length):
                        raise ValueError(f"member {member.name!r} reaches outside the file")
                    if member.issparse():
                        raise ValueError(f"member {member.name!r} is a sparse file")
                    if member.isreg():
                        yield member.name, first, member.size
                    end = tar.offset
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        except _DAMAGED_TAR as error:
            raise ShardSetError(
                f"{self.path}: not a whole, uncompressed tar ({error}); restore or remove the file"
            ) from None
        # tarfile takes a header that it cannot read for the end of the archive.
        if any(self._map[end : end + tarfile.BLOCKSIZE]):
            raise ShardSetError(
                f"{self.path}: damaged at byte {end}, where the next member's header should be; "
                "restore or remove the file"
            )

    def __len__(self) -> int:
        return len(self._images)

    def key(self, index: int) -> str:
        """Returns the key of a sample."""
        first = int(self._key_ends[index - 1]) if index else 0
        return self._keys[first : int(self._key_ends[index])].decode("utf-8", "surrogateescape")

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
            if index in self.repeated:
                raise ValueError(f"member {self.repeated[index]!r} appears twice")
            image = self._bytes(index, _IMAGE, MAX_IMAGE_BYTES)
            if image is None:
                raise ValueError(f"no image (.{', .'.join(IMAGE_EXTENSIONS)}) among its members")
            extension = IMAGE_EXTENSIONS[self._images[index]]
            return RawSample(key, image, extension, **self._metadata(index))
        except ValueError as error:
            raise SampleError(shard, key, str(error)) from None

    def _metadata(self, index: int) -> dict[str, Any]:
        document: dict[str, Any] = {}
        encoded = self._bytes(index, _JSON, MAX_TEXT_BYTES)
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
            text = self._bytes(index, _TXT, MAX_TEXT_BYTES)
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
        return {"class_": class_, "caption": caption, **size, "synthetic": bool(synthetic)}

    def _class_member(self, index: int) -> str | int | None:
        encoded = self._bytes(index, _CLS, MAX_TEXT_BYTES)
        if encoded is None:
            return None
        text = encoded.decode("utf-8", "replace").strip()
        return int(text) if text.isascii() and text.isdigit() else text

    def _bytes(self, index: int, slot: int, limit: int) -> bytes | None:
        offset, size = (int(value) for value in self._places[index, slot])
        if offset < 0:
            return None
        if size > limit:
            raise ValueError(f"a member has {size} bytes; the limit for its kind is {limit}")
        return self._map[offset : offset + size]


def split_name(name: str) -> tuple[str, str]:
    """Splits a member's name into key and lower-case extension, at the last part's first dot.

    `a.b/c.d.png` gives `a.b/c` and `d.png`. Names without a key or an extension give two empty
    strings: they belong to no sample.
    """
    name = name.removeprefix("./")
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot:
        return "", ""
    return folder + slash + stem, extension.lower()


def _is_or_none(value: object, kind: type | tuple[type, ...]) -> bool:
    return value is None or (isinstance(value, kind) and not isinstance(value, bool))


class ShardReader:
    """Reads sample `index` of shard `shard` of a set; shards are opened on first use.

    It can be sent to worker processes: open files stay behind, each process opens its own.

    Args:
        root: The set's folder.
        manifest: Its manifest.
        max_open: Shards kept open (each a file descriptor); the least recently used is closed.
    """

    def __init__(self, root: Path, manifest: Manifest, *, max_open: int = 256) -> None:
        if max_open < 1:
            raise ValueError(f"max_open is {max_open}; it must be at least 1")
        self.root = Path(root)
        self.manifest = manifest
        self.max_open = max_open
        self._open: OrderedDict[int, TarIndex] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, shard: int, index: int) -> RawSample:
        """Reads one sample.

        Raises:
            SampleError: The sample has no image, or bad metadata.
            ShardSetError: The shard cannot be read or holds another number of samples than the
                manifest says.
        """
        return self._index(shard).read(index, self.manifest.shards[shard].path)

    def key(self, shard: int, index: int) -> str:
        """Returns a sample's key without reading the sample."""
        return self._index(shard).key(index)

    def close(self) -> None:
        """Closes all shards; the next read opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _index(self, shard: int) -> TarIndex:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        entry = self.manifest.shards[shard]
        path = self.root / entry.path
        try:
            index = TarIndex(path)
        except OSError as error:
            raise ShardSetError(
                f"{path}: cannot be opened ({error.strerror}); restore the file, or accept what is "
                f"there with `simple-diffusion data index {self.root}`"
            ) from None
        if len(index) != entry.samples:
            raise ShardSetError(
                f"{path}: holds {len(index)} samples but the manifest says {entry.samples}; "
                "restore the file, or accept what is there with "
                f"`simple-diffusion data index {self.root}`"
            )
        if len(self._open) >= self.max_open:
            self._open.popitem(last=False)[1].close()
        self._open[shard] = index
        return index
