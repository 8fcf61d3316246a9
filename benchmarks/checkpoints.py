"""How long a checkpoint holds up training, beside writing it in the plain way.

    OMP_NUM_THREADS=1 python benchmarks/checkpoints.py --folder DIR

A checkpoint is float32 weights, one average and AdamW's two moments. Measured in turn, in one run:
the plain way (rank 0 saves all of it as one safetensors file and syncs it, the others wait), the
stall (until `CheckpointStore.save` returns, on the process where that takes longest), and the whole
(until the checkpoint is complete: written, hashed, synced and renamed). Medians, and their ratios.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from simple_diffusion.config import ModelConfig, build_network
from simple_diffusion.config_files import load_config
from simple_diffusion.training.checkpoint_share import flatten
from simple_diffusion.training.state import CheckpointStore, TensorGroups, optimizer_tensors

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description="Stall of a checkpoint, beside a plain write.")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    small = load_config(QUICKSTART).model
    print(
        "| parameters | processes | MB | plain s | stall s | whole s | stall/plain | whole/plain |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for model in (small, replace(small, channels=(64, 128, 768), depth=12)):
        for processes in arguments.processes:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                task = (processes, Path(folder), model, arguments.repeats)
                spawn(measure, task, nprocs=processes)
                print(
                    row(processes, json.loads((Path(folder) / "times.json").read_text())),
                    flush=True,
                )


def row(processes: int, found: dict[str, list[float]]) -> str:
    """One line of the table."""
    plain, stall, whole = (statistics.median(found[key]) for key in ("plain", "stall", "whole"))
    return (
        f"| {found['millions'][0]:.1f}M | {processes} | {found['megabytes'][0]:.0f} | {plain:.3f} "
        f"| {stall:.3f} | {whole:.3f} | {stall / plain:.2f} | {whole / plain:.2f} |"
    )


def measure(rank: int, processes: int, folder: Path, model: ModelConfig, repeats: int) -> None:
    """One process: the first round, in which memory is found and files are made, is left out."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    group = dist.new_group(backend="gloo") if processes > 1 else None
    groups = tensors(model)
    store = CheckpointStore(folder / "checkpoints", keep=1, group=group)
    found: dict[str, list[float]] = {"plain": [], "stall": [], "whole": []}
    for number in range(repeats + 1):
        times = {"plain": plain(groups, folder / "plain.safetensors", rank)}
        dist.barrier()
        store.save(number, groups, {})
        store.wait()
        saved = store.poll()
        stall = torch.tensor(saved.stall_seconds if saved is not None else 0.0)
        times["whole"] = saved.seconds if saved is not None else 0.0
        dist.all_reduce(stall, dist.ReduceOp.MAX)
        times["stall"] = stall.item()
        for key, value in times.items():
            if number:
                found[key].append(value)
    flat = flatten(groups).values()
    found["millions"] = [sum(t.numel() for t in groups["model"].values()) / 1e6]
    found["megabytes"] = [sum(t.numel() * t.element_size() for t in flat) / 1e6]
    if rank == 0:
        (folder / "times.json").write_text(json.dumps(found))
    dist.barrier()


def tensors(model: ModelConfig) -> TensorGroups:
    """What a run's checkpoint holds, after one step."""
    network = build_network(model, 64)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    for parameter in names:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    weights = {name: parameter.detach() for parameter, name in names.items()}
    average = {name: weight.clone() for name, weight in weights.items()}
    moments = optimizer_tensors(optimizer, names)
    return {"model": dict(weights), "ema_0.100": average, "optimizer": moments}


def plain(groups: TensorGroups, path: Path, rank: int) -> float:
    """Seconds until everyone may go on after the first process has written everything."""
    dist.barrier()
    began = time.perf_counter()
    if rank == 0:
        save_file({name: t.contiguous() for name, t in flatten(groups).items()}, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    dist.barrier()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
