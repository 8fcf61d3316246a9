"""Files of tensors in the safetensors format: written with their checksum, read by rows.

The format is eight bytes (the header's length, little endian), a JSON header, and the tensors'
bytes in the order of the header. It is written here, and not by the safetensors package, because
the checksum is made of the bytes on their way to the disk, and because object stores have no mmap.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from simple_diffusion.training.checkpoint_places import CheckpointError, Folder

MAX_HEADER_BYTES = 100_000_000  # as the safetensors package
_PIECE = 64 * 2**20
_HASH_PIECE = 16 * 2**20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class FileFacts:
    """What the marker says of a file."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes are in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class _HashingFile:
    """Hashes what it writes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)
        self.bytes += len(data)

    def sha256(self) -> str:
        return self._digest.hexdigest()


def write_tensors(folder: Folder, name: str, tensors: Mapping[str, Tensor]) -> FileFacts:
    """Write CPU tensors as one safetensors file.

    Raises:
        OSError: there is no space, or no permission.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors are aligned
    with folder.create(name) as file:
        hashing = _HashingFile(file)
        hashing.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            content = bytes_of(tensor.contiguous())
            for start in range(0, len(content), _PIECE):
                hashing.write(content[start : start + _PIECE])
    return FileFacts(name, hashing.bytes, hashing.sha256())


def write_text(folder: Folder, name: str, text: str) -> FileFacts:
    """Write a text file.

    Raises:
        OSError: there is no space, or no permission.
    """
    with folder.create(name) as file:
        hashing = _HashingFile(file)
        hashing.write(text.encode())
    return FileFacts(name, hashing.bytes, hashing.sha256())


def read_json(folder: Folder, name: str, limit: int) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it is missing, larger than the limit, or no JSON object.
    """
    size = folder.size(name)
    if size is None:
        raise CheckpointError(f"{folder.path}/{name}: missing")
    if size > limit:
        raise CheckpointError(f"{folder.path}/{name}: larger than {limit} bytes")
    with folder.open(name) as file:
        content = _read(file, size)
    return parse_object(content, f"{folder.path}/{name}")


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object from bytes whose number is bounded.

    Raises:
        CheckpointError: it is none.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: must hold an object")
    return parsed


def sha256_of(folder: Folder, name: str) -> str:
    """The checksum of a file as it is stored.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with folder.open(name) as file:
        while piece := file.read(_HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest()


class TensorFile:
    """A safetensors file opened for reading; a context manager.

    Args:
        folder: where it is.
        name: its name.

    Raises:
        CheckpointError: it is no safetensors file.
        OSError: it cannot be read.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.where = f"{folder.path}/{name}"
        size = folder.size(name)
        if size is None:
            raise CheckpointError(f"{self.where}: missing")
        self._file = folder.open(name)
        try:
            self.tensors = self._read_header(size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, key: str, start: int, stop: int) -> Tensor:
        """The rows [start, stop) of a tensor, along its first dimension.

        A tensor without dimensions has one row, and is given whole.

        Raises:
            CheckpointError: the file ends before.
            OSError: it cannot be read.
        """
        stored = self.tensors[key]
        itemsize = stored.dtype.itemsize
        width = math.prod(stored.shape[1:]) * itemsize
        shape = (stop - start, *stored.shape[1:]) if stored.shape else ()
        rows = torch.empty(shape, dtype=stored.dtype)
        self._file.seek(stored.start + start * width)
        self._fill(bytes_of(rows))
        return rows

    def _read_header(self, size: int) -> dict[str, StoredTensor]:
        length = int.from_bytes(_read(self._file, min(8, size)), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{self.where}: no safetensors file, or cut short")
        header = parse_object(_read(self._file, length), self.where)
        header.pop("__metadata__", None)
        try:
            tensors = {key: _stored(entry, 8 + length) for key, entry in header.items()}
            ends = [8 + length + entry["data_offsets"][1] for entry in header.values()]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{self.where}: its header cannot be used: {error!r}") from None
        if max(ends, default=0) > size:
            raise CheckpointError(f"{self.where}: cut short ({size} bytes of {max(ends)})")
        return tensors

    def _fill(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            count = self._file.readinto(buffer[done : done + _PIECE])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{self.where}: ends too early")
            done += count


def _stored(entry: dict[str, Any], data: int) -> StoredTensor:
    """A header's entry, checked: sizes are counts, and agree with each other."""
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("sizes must be counts")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("data_offsets and shape do not agree")
    return StoredTensor(dtype, shape, data + begin)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    assert tensor.is_contiguous()
    if not tensor.numel():
        return memoryview(b"")
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def _read(file: BinaryIO, count: int) -> bytes:
    """So many bytes, or what there is; an unbuffered file may give them in pieces."""
    pieces = []
    while count and (piece := file.read(min(count, _PIECE))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
