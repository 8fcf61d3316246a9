"""A checkpoint opened for reading, by one process or by many, whoever wrote it."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from simple_diffusion.training.checkpoint_dcp import (
    MAX_JSON_BYTES,
    STATE,
    ShardReader,
    read_piece,
    read_together,
)
from simple_diffusion.training.checkpoint_index import (
    Chunk,
    Entry,
    Index,
    index_of_groups,
    read_index,
)
from simple_diffusion.training.checkpoint_places import MARKER, CheckpointError, Folder
from simple_diffusion.training.checkpoint_share import TensorGroups, flatten
from simple_diffusion.training.shard_files import TensorFile, bytes_of, read_json, sha256_of

FORMAT_VERSION = 2
_MOST_NAMES = 5


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint.

    Attributes:
        folder: its files.
        state: what its state file says.
        files: what its marker lists: name -> bytes and checksum.
        process_group: the processes that load it together; None for one alone.
    """

    folder: Folder
    state: dict[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    process_group: dist.ProcessGroup | None = None

    @property
    def path(self) -> Path | str:
        """Where it is: a folder, or a URL."""
        return self.folder.path

    def groups(self) -> list[str]:
        """The names of its groups of tensors."""
        return list(self._index.groups)

    def shapes(self, group: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and type of every tensor of a group.

        Raises:
            CheckpointError: there is no such group.
        """
        return {
            name: (torch.Size(entry.shape), entry.dtype)
            for name, entry in self._group(group).items()
        }

    def sha256(self, group: str) -> str:
        """A checksum of a group's names and values, whichever files they lie in.

        Raises:
            CheckpointError: there is no such group, or a file cannot be read.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors(group).items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(bytes_of(tensor))
        return digest.hexdigest()

    def tensors(self, group: str) -> dict[str, Tensor]:
        """The tensors of one group, whole and on the CPU; needs no other process.

        Raises:
            CheckpointError: there is no such group, or a file cannot be read.
        """
        entries = self._group(group)
        whole = {name: torch.empty(e.shape, dtype=e.dtype) for name, e in entries.items()}
        by_file: dict[str, list[tuple[str, Entry, Chunk]]] = defaultdict(list)
        for name, entry in entries.items():
            for chunk in entry.chunks:
                by_file[chunk.file].append((name, entry, chunk))
        try:
            for file, pieces in by_file.items():
                with TensorFile(self.folder, file) as opened:
                    for name, entry, chunk in pieces:
                        target = whole[name]
                        for dimension, start in enumerate(chunk.offsets):
                            target = target.narrow(dimension, start, chunk.sizes[dimension])
                        nothing = (0,) * len(chunk.sizes)
                        target.copy_(read_piece(opened, entry, chunk, nothing, chunk.sizes))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from None
        return whole

    def load_into(self, groups: TensorGroups) -> None:
        """Fill tensors in place: plain ones whole, DTensors this process's shards.

        Every process of the group calls it, with the same groups. Groups of the checkpoint that are
        not asked for are left alone.

        Raises:
            CheckpointError: a group has other tensors than the ones given, or of other shapes or
                types; or a file cannot be read, on any process.
            RuntimeError: another process is gone.
        """
        for group, tensors in groups.items():
            self._compare(group, tensors)
        try:
            read_together(
                flatten(groups), ShardReader(self.folder, self._index), self.process_group
            )
        except CheckpointException as error:
            _, (why, _) = min(error.failures.items(), key=lambda item: item[0])
            raise CheckpointError(f"{self.path}: cannot be read: {why}") from None
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from None

    @cached_property
    def _index(self) -> Index:
        read = index_of_groups if self.state["format_version"] == 1 else read_index
        try:
            return read(self.folder, self.files)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from None

    def _group(self, group: str) -> dict[str, Entry]:
        if group not in self._index.groups:
            there = ", ".join(self._index.groups)
            raise CheckpointError(f"{self.path}: no group {group!r} of tensors; it has {there}")
        return self._index.group(group)

    def _compare(self, group: str, tensors: Mapping[str, Tensor]) -> None:
        entries = self._group(group)
        wrong = []
        if missing := sorted(tensors.keys() - entries.keys()):
            wrong.append(f"it lacks {_some(missing)}")
        if surplus := sorted(entries.keys() - tensors.keys()):
            wrong.append(f"there is no place for {_some(surplus)}")
        misfits = [
            f"{name} ({_form(entry.shape, entry.dtype)} saved, "
            f"{_form(tensors[name].shape, tensors[name].dtype)} here)"
            for name, entry in sorted(entries.items())
            if name in tensors
            and (tuple(tensors[name].shape), tensors[name].dtype) != (entry.shape, entry.dtype)
        ]
        if misfits:
            wrong.append(f"other shapes: {_some(misfits)}")
        if wrong:
            raise CheckpointError(f"{self.path}: {group} is of another model: " + "; ".join(wrong))


def read_marker(folder: Folder) -> dict[str, dict[str, Any]]:
    """What the marker of a checkpoint lists, its names checked.

    Raises:
        CheckpointError: there is none (it is not complete), or it is damaged.
    """
    if folder.size(MARKER) is None:
        raise CheckpointError(f"{folder.path}: not a complete checkpoint ({MARKER} is missing)")
    files = read_json(folder, MARKER, MAX_JSON_BYTES)
    for name, facts in files.items():
        if name != Path(name).name or name in ("", ".", ".."):
            raise CheckpointError(f"{folder.path}/{MARKER}: {name!r} is no name of a file")
        if not isinstance(facts, dict) or not {"bytes", "sha256"} <= facts.keys():
            raise CheckpointError(f"{folder.path}/{MARKER}: {name} lacks its size or checksum")
    if STATE not in files:
        raise CheckpointError(f"{folder.path}: {STATE} is missing")
    return files


def damage(folder: Folder, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with these files of a checkpoint, or None.

    Raises:
        OSError: one cannot be read now, which says nothing of what is in it.
    """
    for name, expected in files.items():
        where = f"{folder.path}/{name}"
        size = folder.size(name)
        if size is None:
            return f"{where}: missing"
        if size != expected["bytes"]:
            return f"{where}: {size} bytes instead of {expected['bytes']}"
        try:
            checksum = sha256_of(folder, name)
        except FileNotFoundError:
            return f"{where}: missing"
        if checksum != expected["sha256"]:
            return f"{where}: its content does not match its checksum"
    return None


def open_verified(folder: Folder) -> Checkpoint:
    """Open a folder whose files were found whole.

    Raises:
        CheckpointError: it is no complete checkpoint, or a newer version wrote it.
    """
    files = read_marker(folder)
    state = read_json(folder, STATE, MAX_JSON_BYTES)
    version = state.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"{folder.path}: written by a newer simple_diffusion (checkpoint format {version}; "
            f"this one reads {FORMAT_VERSION}); upgrade simple_diffusion"
        )
    return Checkpoint(folder, state, files)


def _form(shape: Iterable[int], dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape)) or 'scalar'} {str(dtype).removeprefix('torch.')}"


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
