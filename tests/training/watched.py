"""Processes under a watchdog, for tests: they go on in step until one of them misbehaves."""

import multiprocessing as mp
import os
import signal
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from simple_diffusion.training.watchdog import Watchdog, heartbeat_store
from tests.processes import forking, print_to

PERIOD = 0.5  # seconds between beats
BATCH = 8
STALL = 3.0  # seconds
LOST = 3  # exit code of a process whose messages failed
PATIENCE = 90.0  # seconds; for machines where others work too


@dataclass(frozen=True)
class Ended:
    """How one process ended: its id, its exit code (None: it did not), and what it printed."""

    pid: int
    code: int | None
    output: str


@dataclass(frozen=True)
class Group:
    """Processes that were started together."""

    folder: Path
    processes: list[mp.process.BaseProcess]

    def end(self, rank: int) -> Ended:
        """Wait for a process to end."""
        process = self.processes[rank]
        process.join(PATIENCE)
        assert process.pid is not None
        output = (self.folder / str(rank)).read_text(errors="replace")
        return Ended(process.pid, process.exitcode, output)

    def kill(self) -> None:
        """End those that are left, stopped ones too."""
        for process in self.processes:
            process.kill()
            process.join()


def start(folder: Path, misdeed: str, culprit: int, processes: int = 2) -> Group:
    """Start processes of which one does something at its fourth step.

    Args:
        folder: a new one, for what they print.
        misdeed: ``kill``, ``stop``, ``sleep``, ``raise`` or ``slow``.
        culprit: rank of the one.
        processes: how many.
    """
    folder.mkdir()
    context = forking()
    started: list[mp.process.BaseProcess] = [
        context.Process(
            target=_main, args=(rank, processes, folder, misdeed if rank == culprit else "")
        )
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    return Group(folder, started)


def _main(rank: int, processes: int, folder: Path, misdeed: str) -> None:
    print_to(folder / str(rank))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=PATIENCE),
    )
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    store = heartbeat_store(rank, processes)
    guard = Watchdog(
        rank=rank, processes=processes, store=store, stall_seconds=STALL, period=PERIOD
    )
    with guard:
        try:
            for step in range(5):
                train_step(guard, step * BATCH, misdeed if step == 3 else "")
            if misdeed == "slow":
                for _ in range(20):  # a long phase of small pieces
                    time.sleep(STALL / 10)
                    guard.at("evaluate", 5 * BATCH)
            guard.at("agree", 5 * BATCH)
            dist.barrier()
        except RuntimeError:
            print(f"LOST {guard.lost(20.0)}", flush=True)
            sys.exit(LOST)
    print("DONE", flush=True)


def train_step(guard: Watchdog, images_seen: int, misdeed: str) -> None:
    time.sleep(PERIOD)  # so that everyone has been heard of
    guard.at("data", images_seen)
    if misdeed == "sleep":
        time.sleep(1000)
    guard.at("agree", images_seen)
    dist.all_reduce(torch.ones(1))
    guard.at("step", images_seen)
    if misdeed == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if misdeed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if misdeed == "raise":
        raise ValueError("a fault of its own")
    dist.all_reduce(torch.ones(1))
