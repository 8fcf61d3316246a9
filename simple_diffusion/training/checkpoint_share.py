"""What each process writes of a checkpoint: its shards, and its share of what all of them hold.

Every process finds this out by itself, from what all know: so only the share is copied from the
device, and the copy, for which training stands still, gets shorter with more processes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

TensorGroups = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Share:
    """One process's part.

    Attributes:
        items: what it writes, as torch.distributed.checkpoint describes it.
        tensors: copies on the CPU, by name.
        total_bytes: of all processes together.
    """

    items: list[WriteItem]
    tensors: dict[str, Tensor]
    total_bytes: int


@dataclass
class _Turns:
    """Deals out what several processes hold alike: each piece to the one with least so far."""

    loads: dict[int, list[int]] = field(default_factory=dict)

    def next(self, copies: int, size: int) -> int:
        """Which of so many copies is written."""
        loads = self.loads.setdefault(copies, [0] * copies)
        chosen = loads.index(min(loads))
        loads[chosen] += size
        return chosen


def copy_share(groups: TensorGroups, rank: int, processes: int) -> Share:
    """Copy what this process has to write to the CPU.

    Args:
        groups: group -> name -> tensor; the same names and global shapes on all processes. Plain
            tensors hold the same values on all of them.
        rank: this process.
        processes: how many there are.
    """
    items, copies = [], {}
    turns, total = _Turns(), 0
    flat = flatten(groups)
    for name in sorted(flat):
        tensor = flat[name].detach()
        size = tensor.numel() * tensor.element_size()
        total += size
        mine, alike = _copy_number(tensor, rank, processes)
        if turns.next(alike, size) != mine:
            continue
        (item,) = create_default_local_save_plan({name: tensor}, False).items
        assert item.tensor_data is not None
        if math.prod(item.tensor_data.chunk.sizes) or not tensor.numel():
            items.append(item)
            copies[name] = _on_cpu(_local(tensor))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()  # the copies were queued only
    return Share(items, copies, total)


def flatten(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One dictionary, by `<group>/<name>`."""
    assert not any("/" in group for group in groups)
    return {
        f"{group}/{name}": t for group, tensors in groups.items() for name, t in tensors.items()
    }


def _copy_number(tensor: Tensor, rank: int, processes: int) -> tuple[int, int]:
    """Which of how many equal copies of its piece of a tensor a process holds."""
    if not isinstance(tensor, DTensor):
        return rank, processes
    mesh = tensor.device_mesh
    coordinates = mesh.get_coordinate()
    assert mesh.size() == processes, "a tensor that only some processes hold"
    assert coordinates is not None
    number, copies = 0, 1
    for coordinate, extent, placement in zip(
        coordinates, mesh.shape, tensor.placements, strict=True
    ):
        assert not placement.is_partial(), "a tensor that was not reduced yet"
        if placement.is_replicate():
            number, copies = number * extent + coordinate, copies * extent
    return number, copies


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous copy. torch keeps pinned memory for the next time, so only the first is slow."""
    pinned = tensor.device.type == "cuda"
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
    return copy.copy_(tensor, non_blocking=pinned)
