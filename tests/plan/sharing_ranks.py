"""What processes that share a network really keep and send, for the tests of the plan."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simple_diffusion.config import build_network
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.parallel import shard_network
from tests.plan.configs import CONV

MICRO_BATCHES = 2
TEACHER_CALLS = 3


class Spy(TorchDispatchMode):
    """Adds up what a ring would have this process send for the collectives of fully_shard."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies, self.sent = copies, 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            sizes = [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            name = func.overloadpacket.__name__
            if name in ("_allgather_base_", "_reduce_scatter_base_"):
                self.sent += max(sizes) - min(sizes)  # (n-1)/n of the whole
            else:
                assert name == "allreduce_", name
                self.sent += 2 * (self.copies - 1) / self.copies * sum(sizes)
        return func(*args, **(kwargs or {}))


def shared(rank: int, group: dist.ProcessGroup) -> dict[str, tuple[int, float]]:
    """For each way of sharing: parameters that this process keeps, and bytes it sends in a step."""
    found = {}
    processes = dist.get_world_size()
    for name, shards, recompute, taught in (
        ("fsdp", processes, (), False),
        ("recompute", processes, (0, 1), False),
        ("hybrid", 2, (), False),
        ("taught", processes, (), True),
    ):
        network = _cut_up(shards, processes, recompute)
        teacher = _cut_up(shards, processes).eval().requires_grad_(False) if taught else None
        kept = sum(
            parameter.to_local().numel()  # type: ignore[attr-defined]
            for one in (network, teacher)
            if one is not None
            for parameter in one.parameters()
        )
        with Spy(processes // shards) as spy:
            for _ in range(MICRO_BATCHES):
                _forward_backward(network, teacher)
        found[name] = (kept, spy.sent)
    found["ddp"] = _copied(processes)
    return found


def _cut_up(shards: int, processes: int, recompute: tuple[int, ...] = ()) -> UViT:
    network = build_network(CONV, 16)
    network.recompute(recompute)
    shape, names = (processes,), ("shard",)
    if shards < processes:
        shape, names = (processes // shards, shards), ("replicate", "shard")  # type: ignore[assignment]
    shard_network(network, init_device_mesh("cpu", shape, mesh_dim_names=names))
    return network


def _copied(processes: int) -> tuple[int, float]:
    network = build_network(CONV, 16)
    model = DistributedDataParallel(network)
    buckets: list[int] = []

    def note(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buckets.append(bucket.buffer().nbytes)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, note)
    with model.no_sync():
        _forward_backward(model)
    _forward_backward(model)
    sent = 2 * (processes - 1) / processes * sum(buckets)
    return sum(parameter.numel() for parameter in network.parameters()), sent


def _forward_backward(
    model: UViT | Callable[..., Tensor], teacher: Callable[..., Tensor] | None = None
) -> None:
    images, labels = torch.randn(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        if teacher is not None:
            with torch.no_grad():
                for _ in range(TEACHER_CALLS):
                    teacher(images, torch.randn(2), labels)
        prediction = model(images, torch.randn(2), labels)
    prediction.float().square().sum().backward()
