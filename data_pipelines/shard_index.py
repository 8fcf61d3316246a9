"""What is in one tar, without opening it: keys, places of the members, sizes in pixels.

The index of `shard-000000.tar` is `shard-000000.index.npz` beside it. Buckets and filters read
only the indices, and a shard whose index is there is opened without walking through its headers.
An index is untrusted input: it is never unpickled, and every array is checked against the tar.
"""

import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_pipelines.manifest import ShardSetError

# In order of preference, should a sample hold several.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
FIELDS = ("json", "cls", "txt")
IMAGE, JSON, CLS, TXT = range(4)  # columns of `places`
INDEX_SUFFIX = ".index.npz"
MAX_INDEX_BYTES = 2**30
_DAMAGED_TAR = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, OSError)
_DAMAGED_NPZ = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    MemoryError,
    SyntaxError,
)
# Name in the file -> dtype.
_ARRAYS = {
    "keys": np.uint8,
    "key_ends": np.int64,
    "places": np.int64,
    "extensions": np.uint8,
    "widths": np.int32,
    "heights": np.int32,
    "repeated": np.int64,
    "sha256": np.uint8,
}


def index_path(tar: Path) -> Path:
    """Where the index of a tar lies."""
    return tar.with_name(tar.name.removesuffix(".tar") + INDEX_SUFFIX)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one tar; members that share a key form one, in order of first appearance.

    Attributes:
        keys: All keys, one after the other, UTF-8.
        key_ends: Where each key ends in them, int64, shape (n,).
        places: Offset and bytes of each sample's image, json, cls and txt member, int64, shape
            (n, 4, 2); the offset is -1 where there is none.
        extensions: Place of the image's extension in IMAGE_EXTENSIONS, uint8, shape (n,).
        widths: Upright width in pixels, int32, shape (n,); 0 where it is not known.
        heights: Upright height likewise.
        repeated: Numbers of samples with a member that appears twice; they cannot be used.
        sha256: Checksum of the tar that this describes, empty where it has not been taken.
    """

    keys: bytes
    key_ends: NDArray[np.int64]
    places: NDArray[np.int64]
    extensions: NDArray[np.uint8]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    repeated: tuple[int, ...] = ()
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.extensions)

    def key(self, number: int) -> str:
        """Returns the key of a sample."""
        first = int(self.key_ends[number - 1]) if number else 0
        return self.keys[first : int(self.key_ends[number])].decode("utf-8", "surrogateescape")

    def described(
        self, widths: NDArray[np.integer], heights: NDArray[np.integer], sha256: str
    ) -> "ShardIndex":
        """The same index with the images' sizes and the tar's checksum."""
        assert widths.shape == heights.shape == (len(self),)
        return replace(
            self, widths=widths.astype(np.int32), heights=heights.astype(np.int32), sha256=sha256
        )

    def to_bytes(self) -> bytes:
        """The index file: an uncompressed npz, equal for equal indices."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            keys=np.frombuffer(self.keys, np.uint8),
            key_ends=self.key_ends,
            places=self.places,
            extensions=self.extensions,
            widths=self.widths,
            heights=self.heights,
            repeated=np.array(self.repeated, dtype=np.int64),
            sha256=np.frombuffer(bytes.fromhex(self.sha256), np.uint8),
        )
        return buffer.getvalue()

    def save(self, path: Path) -> str:
        """Writes the index file atomically and returns its SHA-256."""
        data = self.to_bytes()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def load(cls, path: Path, *, tar_bytes: int) -> "ShardIndex":
        """Reads an index file and checks it.

        Args:
            path: The file.
            tar_bytes: Size of the tar, which no member may exceed.

        Raises:
            ShardSetError: The file is missing, damaged, or describes what cannot be.
        """
        try:
            if path.stat().st_size > MAX_INDEX_BYTES:
                raise ValueError(f"larger than {MAX_INDEX_BYTES} bytes")
            return cls.from_bytes(path.read_bytes(), tar_bytes=tar_bytes)
        except (OSError, ValueError) as error:
            raise ShardSetError(
                f"{path}: not a usable index of its shard ({error}); write a new one with "
                f"`simple-diffusion data index {path.parent}`"
            ) from None

    @classmethod
    def from_bytes(cls, data: bytes, *, tar_bytes: int) -> "ShardIndex":
        """Reads an index file's content and checks it.

        Raises:
            ValueError: It is damaged, or describes what cannot be.
        """
        arrays = _arrays(data)
        count = len(arrays["extensions"])
        shapes = {"key_ends": (count,), "places": (count, 4, 2)}
        shapes |= dict.fromkeys(("widths", "heights"), (count,))
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"'{name}' has the shape {arrays[name].shape}, not {shape}")
        _check(arrays, count, tar_bytes)
        return cls(
            keys=arrays["keys"].tobytes(),
            key_ends=arrays["key_ends"],
            places=arrays["places"],
            extensions=arrays["extensions"],
            widths=arrays["widths"],
            heights=arrays["heights"],
            repeated=tuple(arrays["repeated"].tolist()),
            sha256=arrays["sha256"].tobytes().hex(),
        )

    @classmethod
    def scan(cls, tar: Path) -> "ShardIndex":
        """Reads a tar's headers; the images' sizes and the checksum stay unknown.

        Raises:
            ShardSetError: The file is not a whole, uncompressed tar.
            OSError: It cannot be opened.
        """
        found = _Scan()
        with open(tar, "rb") as file:
            for name, offset, size in _members(tar, file):
                found.add(name, offset, size)
        return found.finish()


@dataclass
class _Scan:
    """The samples found so far in a walk through a tar."""

    keys: dict[str, int] = field(default_factory=dict)
    places: list[list[tuple[int, int]]] = field(default_factory=list)
    images: list[int] = field(default_factory=list)  # place in IMAGE_EXTENSIONS, or their number
    repeated: set[int] = field(default_factory=set)

    def add(self, name: str, offset: int, size: int) -> None:
        key, extension = split_name(name)
        if not key:
            return
        number = self._number(key)  # a sample of none but foreign members is one too, unusable
        if extension in IMAGE_EXTENSIONS:
            slot, preference = IMAGE, IMAGE_EXTENSIONS.index(extension)
            if preference > self.images[number]:
                return
            if preference == self.images[number]:
                self.repeated.add(number)
            self.images[number] = preference
        elif extension in FIELDS:
            slot = 1 + FIELDS.index(extension)
            if self.places[number][slot][0] >= 0:
                self.repeated.add(number)
        else:
            return
        self.places[number][slot] = (offset, size)

    def _number(self, key: str) -> int:
        number = self.keys.setdefault(key, len(self.keys))
        if number == len(self.places):
            self.places.append([(-1, 0)] * 4)
            self.images.append(len(IMAGE_EXTENSIONS))
        return number

    def finish(self) -> ShardIndex:
        encoded = [key.encode("utf-8", "surrogateescape") for key in self.keys]
        nothing = np.zeros(len(encoded), dtype=np.int32)
        return ShardIndex(
            keys=b"".join(encoded),
            key_ends=np.cumsum([len(key) for key in encoded], dtype=np.int64),
            places=np.array(self.places, dtype=np.int64).reshape(-1, 4, 2),
            extensions=np.array(self.images, dtype=np.uint8),
            widths=nothing,
            heights=nothing,
            repeated=tuple(sorted(self.repeated)),
        )


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


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset, size) of the regular files, checked to lie inside the tar."""
    length, end = os.fstat(file.fileno()).st_size, 0
    if not length:
        raise ShardSetError(f"{path}: the file is empty, not a tar")
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
            f"{path}: not a whole, uncompressed tar ({error}); restore or remove the file"
        ) from None
    # tarfile takes a header that it cannot read for the end of the archive.
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise ShardSetError(
            f"{path}: damaged at byte {end}, where the next member's header should be; "
            "restore or remove the file"
        )


def _arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an npz, of the right types; never more bytes than the file has."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            missing = sorted(set(_ARRAYS) - set(file.files))
            if missing:
                raise ValueError(f"array '{missing[0]}' is missing")
            arrays = {name: file[name] for name in _ARRAYS}
    except _DAMAGED_NPZ as error:
        raise ValueError(str(error) or type(error).__name__) from None
    for name, dtype in _ARRAYS.items():
        array = arrays[name]
        if array.dtype != dtype:
            raise ValueError(f"'{name}' is of type {array.dtype}, not {np.dtype(dtype)}")
        if name != "places" and array.ndim != 1:
            raise ValueError(f"'{name}' has {array.ndim} dimensions, not 1")
    return arrays


def _check(arrays: dict[str, NDArray[Any]], count: int, tar_bytes: int) -> None:
    ends, places = arrays["key_ends"], arrays["places"]
    steps = np.diff(ends, prepend=0)
    if (steps <= 0).any() or (int(ends[-1]) if count else 0) != len(arrays["keys"]):
        raise ValueError("its keys do not follow each other")
    offsets, sizes = places[..., 0], places[..., 1]
    absent = (offsets == -1) & (sizes == 0)
    inside = (offsets >= 0) & (sizes >= 0) & (offsets <= tar_bytes) & (sizes <= tar_bytes - offsets)
    if not (absent | inside).all():
        raise ValueError("a member reaches outside the shard")
    known = len(IMAGE_EXTENSIONS)
    if ((arrays["extensions"] >= known) != (offsets[:, IMAGE] < 0)).any():
        raise ValueError("an image without a known extension")
    if (arrays["widths"] < 0).any() or (arrays["heights"] < 0).any():
        raise ValueError("an image of negative size")
    repeated = arrays["repeated"]
    if ((repeated < 0) | (repeated >= count)).any():
        raise ValueError("'repeated' names samples that are not there")
    if len(arrays["sha256"]) not in (0, 32):
        raise ValueError("'sha256' is not a checksum")
