"""torch.distributed.checkpoint over our files: the storage it writes to and reads from.

Its own storage keeps the metadata in a pickle. Here it is JSON, and nothing that is read executes
code.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from simple_diffusion.training.checkpoint_index import INDEX, Chunk, Entry, Index
from simple_diffusion.training.checkpoint_places import MARKER, CheckpointError, Folder, Places
from simple_diffusion.training.shard_files import (
    TensorFile,
    write_tensors,
    write_text,
)

STATE = "state.json"
MAX_JSON_BYTES = 10_000_000


class WriteError(OSError):
    """A process could not write; made of a number and a text, so that it travels to the others."""


class ShareSavePlanner(DefaultSavePlanner):
    """Plans to write the items that `copy_share` chose."""

    def __init__(self, items: list[WriteItem]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._items = items

    def create_local_plan(self) -> SavePlan:
        """See the base class."""
        self.plan = SavePlan(self._items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The copy of a piece: there is one for each name."""
        tensor: Tensor = self.state_dict[index.fqn]
        return tensor


class ShardWriter(StorageWriter):
    """Writes one file a process; the first process then adds the index, the state and the marker.

    Args:
        places: where the checkpoints are.
        images_seen: names this one.
        groups: the names of the groups of tensors.
        state: the text of the state file; the first process's counts.
        rank: this process.

    Attributes:
        name: the folder in the making, once it is known.
    """

    def __init__(
        self, places: Places, images_seen: int, groups: Sequence[str], state: str, rank: int
    ) -> None:
        self._places, self._images_seen, self._state, self._rank = places, images_seen, state, rank
        self._groups = tuple(groups)
        self.name: str | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike) -> bool:
        """Places are given to the constructor instead."""
        return False

    def reset(self, checkpoint_id: str | PathLike | None = None) -> None:
        """One object writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: all was said to the constructor."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan needs nothing from the storage yet."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder, and tell everyone its name."""
        with _portable_errors():
            self.name = self._places.begin(self._images_seen)
        for plan in plans:
            object.__setattr__(plan, "storage_data", self.name)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's file."""
        self.name = plan.storage_data
        results = []
        if plan.items:
            tensors = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            assert len(tensors) == len(plan.items), "two pieces of one tensor"
            with _portable_errors():
                facts = write_tensors(
                    self._places.temporary(plan.storage_data),
                    f"rank-{self._rank:05d}.safetensors",
                    {name: t for name, t in tensors.items() if isinstance(t, Tensor)},
                )
            results = [
                WriteResult(item.index, item.tensor_storage_size() or 0, facts)
                for item in plan.items
            ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Add what describes the files, the marker last, and give the folder its name."""
        assert self.name is not None
        folder = self._places.temporary(self.name)
        shards = {r.storage_data.name: r.storage_data for of_rank in results for r in of_rank}
        with _portable_errors():
            self._see_all(folder, shards.values())
            index = _index_of(self._groups, metadata, results)
            facts = [
                *shards.values(),
                write_text(folder, INDEX, index.to_json()),
                write_text(folder, STATE, _bounded(self._state, STATE)),
            ]
            marker = {f.name: {"bytes": f.bytes, "sha256": f.sha256} for f in facts}
            write_text(folder, MARKER, _bounded(json.dumps(marker, indent=1), MARKER))
            done = self._places.commit(self.name, self._images_seen)
        # All processes are sent the metadata, and need only this of it.
        metadata.state_dict_metadata = {}
        metadata.storage_data = {"path": str(done.path), "bytes": sum(f.bytes for f in facts)}

    def _see_all(self, folder: Folder, shards: Any) -> None:
        for facts in shards:
            if folder.size(facts.name) != facts.bytes:
                raise WriteError(
                    0,
                    f"{folder.path}/{facts.name} was written by another process, and is not here: "
                    "all nodes must share the folder of the checkpoints (checkpoint.path)",
                )


class ShardReader(StorageReader):
    """Reads the pieces that a plan asks for.

    Args:
        folder: the checkpoint's.
        index: what is in it.
    """

    def __init__(self, folder: Folder, index: Index) -> None:
        self._folder, self._index = folder, index

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike) -> bool:
        """The folder is given to the constructor instead."""
        return False

    def reset(self, checkpoint_id: str | PathLike | None = None) -> None:
        """Nothing is kept between two uses."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, in the words of torch.distributed.checkpoint."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=entry.dtype),
                    torch.Size(entry.shape),
                    [
                        ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes))
                        for c in entry.chunks
                    ],
                )
                for name, entry in self._index.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to do: all was said to the constructor."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan needs nothing from the storage."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans need nothing from the storage."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors, file by file."""
        by_file: dict[str, list[tuple[ReadItem, Chunk]]] = defaultdict(list)
        for item in plan.items:
            chunks = self._index.tensors[item.storage_index.fqn].chunks
            assert item.storage_index.index is not None
            chunk = chunks[item.storage_index.index]
            by_file[chunk.file].append((item, chunk))
        with _portable_errors():
            for file, wanted in by_file.items():
                with TensorFile(self._folder, file) as opened:
                    for item, chunk in wanted:
                        entry = self._index.tensors[item.storage_index.fqn]
                        piece = read_piece(opened, entry, chunk, item.storage_offsets, item.lengths)
                        target = planner.resolve_tensor(item).detach()
                        target.copy_(piece)
                        planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future


def write_together(
    tensors: dict[str, Tensor],
    items: list[WriteItem],
    writer: ShardWriter,
    group: dist.ProcessGroup | None,
) -> dict[str, Any]:
    """Write a checkpoint. Every process of the group calls it; without one, this one is alone.

    Returns:
        Its `path`, and the `bytes` of its files.

    Raises:
        CheckpointException: in a group, what failed on which of its processes.
        WriteError: alone, what failed.
        RuntimeError: another process is gone.
    """
    planner = ShareSavePlanner(items)
    if group is not None:
        metadata = save(dict(tensors), storage_writer=writer, planner=planner, process_group=group)
    else:  # the same calls without a word to others, and without a warning that there are none
        planner.set_up_planner(tensors, is_coordinator=True)
        plans, metadata = planner.create_global_plan([planner.create_local_plan()])
        (plan,) = writer.prepare_global_plan(plans)
        writer.finish(metadata, [writer.write_data(planner.finish_plan(plan), planner).value()])
    described: dict[str, Any] = metadata.storage_data
    return described


def read_together(
    tensors: dict[str, Tensor], reader: ShardReader, group: dist.ProcessGroup | None
) -> None:
    """Fill tensors in place. Every process of the group calls it; without one, this one is alone.

    Raises:
        CheckpointException: in a group, what failed on which of its processes.
        CheckpointError, OSError: alone, what failed.
        RuntimeError: another process is gone.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if group is not None:
        load(dict(tensors), storage_reader=reader, planner=planner, process_group=group)
    else:
        planner.set_up_planner(dict(tensors), reader.read_metadata(), is_coordinator=True)
        plans = planner.create_global_plan([planner.create_local_plan()])
        reader.read_data(planner.finish_plan(plans[0]), planner)


def read_piece(
    file: TensorFile, entry: Entry, chunk: Chunk, offsets: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    """A box of a chunk.

    Args:
        file: the chunk's file.
        entry: the tensor that it belongs to.
        chunk: the chunk.
        offsets: where the box begins, within the chunk.
        sizes: how large it is.

    Raises:
        CheckpointError: the file does not hold this chunk.
        OSError: it cannot be read.
    """
    stored = file.tensors.get(chunk.key)
    if stored is None or (stored.dtype, stored.shape) != (entry.dtype, chunk.sizes):
        raise CheckpointError(f"{file.where}: {chunk.key} is not what {INDEX} says")
    if not sizes:
        return file.rows(chunk.key, 0, 1)
    piece = file.rows(chunk.key, offsets[0], offsets[0] + sizes[0])
    for dimension in range(1, len(sizes)):
        piece = piece.narrow(dimension, offsets[dimension], sizes[dimension])
    return piece


def _index_of(
    groups: tuple[str, ...], metadata: Metadata, results: list[list[WriteResult]]
) -> Index:
    """Where every tensor's pieces went."""
    chunks: dict[str, list[Chunk]] = defaultdict(list)
    described = metadata.state_dict_metadata
    sizes = {
        MetadataIndex(name, chunk.offsets): tuple(chunk.sizes)
        for name, tensor in described.items()
        if isinstance(tensor, TensorStorageMetadata)
        for chunk in tensor.chunks
    }
    for result in (result for of_rank in results for result in of_rank):
        name, offsets = result.index.fqn, result.index.offset
        assert offsets is not None
        size = sizes[MetadataIndex(name, offsets)]
        chunks[name].append(Chunk(tuple(offsets), size, result.storage_data.name, name))
    return Index(
        groups,
        {
            name: Entry(tensor.properties.dtype, tuple(tensor.size), tuple(chunks[name]))
            for name, tensor in described.items()
            if isinstance(tensor, TensorStorageMetadata)
        },
    )


def _bounded(text: str, name: str) -> str:
    if len(text) > MAX_JSON_BYTES:
        raise WriteError(
            0, f"{name} would have {len(text)} bytes, and at most {MAX_JSON_BYTES} are read again"
        )
    return text


class _portable_errors:  # noqa: N801 - used as a statement
    """Turns what a store's library raises into what can be sent to another process."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, WriteError | AssertionError):
            number = getattr(error, "errno", None) or 0
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise WriteError(number, text) from error
