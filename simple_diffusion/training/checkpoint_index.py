"""What tensors a checkpoint holds, and in which pieces: `index.json`, and the headers of version 1.

A tensor's name is `<group>/<name>`. Its chunks are boxes that fill it, each one tensor of the same
name in one file.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from simple_diffusion.training.checkpoint_places import CheckpointError, Folder
from simple_diffusion.training.shard_files import DTYPE_NAMES, DTYPES, TensorFile, read_json

INDEX = "index.json"
MAX_INDEX_BYTES = 256_000_000  # some 5 million chunks: 5,000 tensors on 1,000 processes
SUFFIX = ".safetensors"
MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and where it is."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    key: str  # its name in the file


@dataclass(frozen=True)
class Entry:
    """One tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """All tensors of a checkpoint.

    Attributes:
        groups: the names of the groups; one may be empty.
        tensors: by `<group>/<name>`.
    """

    groups: tuple[str, ...]
    tensors: dict[str, Entry]

    def group(self, name: str) -> dict[str, Entry]:
        """The tensors of one group, by their name within it."""
        prefix = f"{name}/"
        return {
            full.removeprefix(prefix): entry
            for full, entry in self.tensors.items()
            if full.startswith(prefix)
        }

    def to_json(self) -> str:
        """The text of `index.json`.

        Raises:
            CheckpointError: it would be too large to be read again.
        """
        files = sorted({chunk.file for entry in self.tensors.values() for chunk in entry.chunks})
        number = {file: position for position, file in enumerate(files)}
        tensors = {
            name: {
                "dtype": DTYPE_NAMES[entry.dtype],
                "shape": entry.shape,
                "chunks": [[number[c.file], c.offsets, c.sizes] for c in entry.chunks],
            }
            for name, entry in self.tensors.items()
        }
        tree = {"groups": self.groups, "files": files, "tensors": tensors}
        text = json.dumps(tree, separators=(",", ":"))
        if len(text) > MAX_INDEX_BYTES:
            raise CheckpointError(
                f"the index of the checkpoint would have {len(text)} bytes, and at most "
                f"{MAX_INDEX_BYTES} are read; lower parallel.shards"
            )
        return text


def read_index(folder: Folder, files: Iterable[str]) -> Index:
    """Read and check `index.json`.

    Args:
        folder: the checkpoint's.
        files: the files that its marker lists.

    Raises:
        CheckpointError: it is missing, or says what cannot be.
    """
    where = f"{folder.path}/{INDEX}"
    tree = read_json(folder, INDEX, MAX_INDEX_BYTES)
    try:
        return _parse(tree, set(files))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{where}: cannot be used: {error}") from None


def index_of_groups(folder: Folder, files: Iterable[str]) -> Index:
    """The index of a checkpoint of version 1: one file a group, all tensors whole.

    Raises:
        CheckpointError: a file is damaged.
    """
    tensors, groups = {}, []
    for file in sorted(name for name in files if name.endswith(SUFFIX)):
        group = file.removesuffix(SUFFIX)
        groups.append(group)
        with TensorFile(folder, file) as opened:
            for name, stored in opened.tensors.items():
                chunk = Chunk((0,) * len(stored.shape), stored.shape, file, name)
                tensors[f"{group}/{name}"] = Entry(stored.dtype, stored.shape, (chunk,))
    return Index(tuple(groups), tensors)


def _parse(tree: Mapping[str, Any], known: set[str]) -> Index:
    groups, files = tree["groups"], tree["files"]
    if not all(isinstance(name, str) for name in groups):
        raise ValueError("'groups' must be names")
    strangers = [file for file in files if file not in known]
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not among the checkpoint's files")
    tensors = {name: _entry(name, value, files) for name, value in tree["tensors"].items()}
    homeless = [name for name in tensors if name.partition("/")[0] not in groups]
    if homeless:
        raise ValueError(f"{homeless[0]!r} is in no group")
    return Index(tuple(groups), tensors)


def _entry(name: str, value: Mapping[str, Any], files: list[str]) -> Entry:
    shape = _counts(value["shape"])
    chunks = []
    for number, offsets, sizes in value["chunks"]:
        if not 0 <= number < len(files):
            raise ValueError(f"{name}: no file number {number}")
        chunk = Chunk(_counts(offsets), _counts(sizes), files[number], name)
        if not len(chunk.offsets) == len(chunk.sizes) == len(shape) or any(
            o + s > n for o, s, n in zip(chunk.offsets, chunk.sizes, shape, strict=True)
        ):
            raise ValueError(f"{name}: a chunk lies outside of it")
        chunks.append(chunk)
    # A file holds a name once: so a tensor is never larger than the files it comes from.
    if len({chunk.file for chunk in chunks}) != len(chunks):
        raise ValueError(f"{name}: two chunks in one file")
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        raise ValueError(f"{name}: its chunks do not fill it")
    return Entry(DTYPES[value["dtype"]], shape, tuple(chunks))


def _counts(numbers: Any) -> tuple[int, ...]:
    counts = tuple(numbers)
    if len(counts) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError(f"{str(counts)[:100]} must be counts")
    return counts
