"""Files inside uncompressed tars, also of a tar inside a tar: where they lie, and their bytes."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_pipelines.decode import DecodeError
from data_pipelines.shards import MAX_IMAGE_BYTES

_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, OSError)


class ArchiveFile(NamedTuple):
    """A regular file in a tar: its name, and where its bytes lie in the outermost file."""

    name: str
    offset: int
    size: int


def archive_files(path: Path) -> Iterator[ArchiveFile]:
    """Lists the regular files of a tar, and of the tars in it instead of these, in their order.

    Raises:
        ValueError: It is not a whole, uncompressed tar.
    """
    with open(path, "rb") as file:
        for member in _files(path, file, 0, os.fstat(file.fileno()).st_size):
            if member.name.endswith(".tar"):
                yield from _files(path, file, member.offset, member.size)
            else:
                yield member


def read_archived(path: Path, offset: int, size: int) -> bytes:
    """Reads an image's bytes out of a tar.

    Raises:
        DecodeError: They are more than any image may have.
        OSError: They cannot be read.
    """
    if size > MAX_IMAGE_BYTES:
        raise DecodeError(f"the file is larger than {MAX_IMAGE_BYTES} bytes")
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise OSError("the archive has become shorter")
    return data


def _files(path: Path, file: BinaryIO, start: int, size: int) -> list[ArchiveFile]:
    """Lists the files of the tar that fills `size` bytes from `start` on."""
    found, end = [], start
    try:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                first, last = member.offset_data, member.offset_data + member.size
                # A negative size would lead back and round for ever.
                if tar.offset <= end or (member.isreg() and not first <= last <= start + size):
                    raise ValueError(f"member {member.name!r} reaches outside the file")
                if member.issparse():
                    raise ValueError(f"member {member.name!r} is a sparse file")
                if member.isreg():
                    found.append(ArchiveFile(member.name, first, member.size))
                end = tar.offset
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
        file.seek(end)  # tarfile takes a header that it cannot read for the end of the archive
        if end == start or any(file.read(min(tarfile.BLOCKSIZE, start + size - end))):
            raise ValueError(f"damaged at byte {end}, where the next header should be")
    except _DAMAGED as error:
        raise ValueError(
            f"{path}: not a whole, uncompressed tar ({error}); restore the file"
        ) from None
    return found
