"""Several real processes that save and load together, over gloo, for the tests of checkpoints."""

import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from simple_diffusion.training.state import CheckpointStore, TensorGroups, optimizer_tensors
from tests.processes import forking

START = 60.0  # seconds; on a machine where others work too
LAYOUTS = {"ddp": None, "fsdp": ("shard",), "hybrid": ("replicate", "shard")}


def run_ranks(processes: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `work(rank, group, *arguments)` in so many processes.

    Returns:
        What each returned; its exit code where it died; or the exception's text where it raised.
    """
    context = forking()
    with tempfile.TemporaryDirectory() as folder:
        results = context.SimpleQueue()
        started = [
            context.Process(
                target=_rank, args=(rank, processes, folder, results, work, arguments), daemon=True
            )
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        answers: dict[int, Any] = {}
        for process in started:
            process.join(START)
        for rank, process in enumerate(started):
            if process.is_alive():
                process.kill()
                process.join()
                answers[rank] = "hung"
            elif process.exitcode:
                answers[rank] = process.exitcode
        while not results.empty():
            rank, answer = results.get()
            answers[rank] = answer
        return [answers[rank] for rank in range(processes)]


def run_alone(work: Callable[..., Any], *arguments: Any) -> int | None:
    """Call `work(*arguments)` in another process; its exit code."""
    context = forking()
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    process.join(START)
    return process.exitcode


def _rank(
    rank: int, processes: int, folder: str, results: Any, work: Callable[..., Any], arguments: Any
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=START),
    )
    group = dist.new_group(backend="gloo")
    try:
        results.put((rank, work(rank, group, *arguments)))
    except Exception as error:
        traceback.print_exc()
        results.put((rank, f"{type(error).__name__}: {error}"))
    os._exit(0)  # a peer may be gone: no farewell collectives


class Odd(nn.Module):
    """Sizes that 2 and 4 do not divide, or exceed."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Linear(3, 7)
        self.one = nn.Linear(7, 1)
        self.cube = nn.Parameter(torch.zeros(3, 2, 5))
        self.row = nn.Parameter(torch.zeros(2, 9))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.tall(x)).sum() + (self.cube**3).sum() + self.row.exp().sum()


def trained(layout: str, seed: int = 0, steps: int = 2) -> tuple[TensorGroups, Any]:
    """Tensors of a network that has learnt for some steps, cut up as the layout says."""
    torch.manual_seed(seed)
    network = Odd()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    if layout != "ddp":
        world = dist.get_world_size()
        shape = (world,) if layout == "fsdp" else (2, world // 2)
        fully_shard(network, mesh=init_device_mesh("cpu", shape, mesh_dim_names=LAYOUTS[layout]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    names = {parameter: name for name, parameter in network.named_parameters()}
    for _ in range(steps):
        network(torch.ones(4, 3)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model: dict[str, Tensor] = {name: parameter for parameter, name in names.items()}
    groups = {
        "model": model,
        "ema": {name: parameter.detach().bfloat16() for name, parameter in model.items()},
        "optimizer": optimizer_tensors(optimizer, names),
        "empty": {},
    }
    return groups, (optimizer, names)


def whole(groups: TensorGroups) -> TensorGroups:
    """Plain copies; every process calls it."""
    return {
        group: {
            name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
            for name, t in tensors.items()
        }
        for group, tensors in groups.items()
    }


def same(first: TensorGroups, second: TensorGroups) -> bool:
    """Whether all bits agree, and names, shapes and types."""
    if {g: set(t) for g, t in first.items()} != {g: set(t) for g, t in second.items()}:
        return False
    return all(
        tensor.dtype == second[group][name].dtype and torch.equal(tensor, second[group][name])
        for group, tensors in first.items()
        for name, tensor in tensors.items()
    )


def save_trained(rank: int, group: dist.ProcessGroup, root: str, layout: str) -> Any:
    """Save at image 8; rank 0 leaves the whole tensors in `<root>.expected`."""
    groups, _ = trained(layout)
    store = CheckpointStore(root, group=group)
    store.save(8, groups, {"step": 2})
    expected = whole(groups)
    for tensors in groups.values():  # what is trained on meanwhile is not saved
        for tensor in tensors.values():
            with torch.no_grad():
                tensor.zero_()
    store.wait()
    if rank == 0:
        torch.save(expected, f"{root}.expected")
    return store.poll()


def expected_of(root: str | Path) -> TensorGroups:
    """What `save_trained` saved."""
    groups: TensorGroups = torch.load(f"{root}.expected")
    return groups


def die() -> None:
    """As `kill -9` would."""
    os.kill(os.getpid(), signal.SIGKILL)
