"""How the processes share a network: copies that exchange gradients, or pieces of one."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from simple_diffusion.config_cluster import Strategy
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.sampling import in_precision

# Launchers that start several processes, and the variable that torch needs from them.
LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
}


@dataclass(frozen=True)
class Parallel:
    """A network as the training step calls it.

    Attributes:
        model: (z, logsnr, labels) -> prediction, in training's precision, float32 out.
        unsynchronised: what the micro-batches before a step's last are done in.
    """

    model: Callable[..., Tensor]
    unsynchronised: Callable[[], AbstractContextManager[object]]


def check_launch(processes: int) -> None:
    """Refuse launches whose processes do not see each other: each would train by itself.

    Args:
        processes: how many Accelerate found to work together.

    Raises:
        RunError: a launcher started more than that.
    """
    remedy = "launch with: torchrun --nproc_per_node N -m simple_diffusion train ..."
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != launched:
        raise RunError(
            f"the launcher started {launched} processes, but {processes} work together; {remedy}"
        )
    if "WORLD_SIZE" in os.environ:
        return
    if "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise RunError(
            "accelerate launch was asked for several processes and started one, as it does without "
            f"GPUs; {remedy}"
        )
    for variable, launcher in LAUNCHERS.items():
        started = int(os.environ.get(variable, "1"))
        if started > 1:
            raise RunError(
                f"{launcher} started {started} processes, but none knows of the others: "
                "WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are not set. Set them, "
                f"as docker/slurm_train.sh does, or {remedy}"
            )


def check_shards(strategy: Strategy, shards: int | None, processes: int) -> None:
    """Raises RunError if the weights cannot be cut up so."""
    if strategy == "fsdp2" and processes == 1:
        raise RunError(
            "parallel.strategy is fsdp2, which cuts the weights up between processes, but there is "
            "one; launch several with torchrun, or set parallel.strategy to ddp"
        )
    if shards is not None and processes % shards:
        raise RunError(
            f"parallel.shards {shards} does not divide the {processes} processes; use a divisor, "
            "such as the number of devices of a node"
        )


def parallelise(
    network: UViT,
    accelerator: Accelerator,
    *,
    strategy: Strategy,
    shards: int | None,
    dtype: torch.dtype,
) -> Parallel:
    """Share a network between the processes; with fsdp2 its parameters become DTensors in place.

    Args:
        network: on the accelerator's device, equal on all processes, with tagged parameters.
        accelerator: of these processes.
        strategy: ``ddp`` or ``fsdp2``.
        shards: processes that share one copy under fsdp2; None for all.
        dtype: of autocast; float32 for none.

    Raises:
        RunError: the weights cannot be cut up so.
    """
    check_shards(strategy, shards, accelerator.num_processes)
    if strategy == "ddp":
        model = accelerator.prepare_model(network)
        return Parallel(model, lambda: accelerator.no_sync(model))
    groups = {name: p.optim_group for name, p in network.named_parameters()}  # type: ignore[attr-defined]
    shard_network(network, device_mesh(accelerator, shards))
    for name, parameter in network.named_parameters():
        parameter.optim_group = groups[name]  # type: ignore[attr-defined]
    # Gradients are reduced after every micro-batch: kept whole until the last, they would take the
    # memory that sharding saves.
    return Parallel(in_precision(network, dtype, accelerator.device), nullcontext)


def shard_network(network: UViT, mesh: DeviceMesh) -> None:
    """Cut up the weights: those of a block are gathered when it runs, and let go after it."""
    for level in range(len(network.levels) + 1):
        for block in network.blocks(level):
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def device_mesh(accelerator: Accelerator, shards: int | None) -> DeviceMesh:
    """The processes as weights are cut up between them: in groups of `shards`, None for one."""
    processes, kind = accelerator.num_processes, accelerator.device.type
    if shards is None or shards == processes:
        return init_device_mesh(kind, (processes,), mesh_dim_names=("shard",))
    shape = (processes // shards, shards)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def clip_gradients(network: nn.Module, largest: float) -> Tensor:
    """Scale the gradients to a norm of at most `largest`; returns the norm before, 0-d.

    The same on every process, and without waiting for the device.
    """
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
