"""One process of several under a watchdog, for tests: it goes on in step until told to misbehave.

Usage: watched.py rank processes port stall_seconds misdeed culprit
"""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from simple_diffusion.training.watchdog import Watchdog, heartbeat_store

PERIOD = 0.4
BATCH = 8


def main() -> None:
    rank, processes, port = map(int, sys.argv[1:4])
    stall, misdeed, culprit = float(sys.argv[4]), sys.argv[5], int(sys.argv[6])
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=120),
    )
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    store = heartbeat_store(rank, processes)
    guard = Watchdog(
        rank=rank, processes=processes, store=store, stall_seconds=stall, period=PERIOD
    )
    with guard:
        try:
            for step in range(5):
                train_step(guard, step * BATCH, misdeed if (rank, step) == (culprit, 3) else "")
        except RuntimeError:
            print(f"LOST {guard.lost(20.0)}", flush=True)
            sys.exit(3)
        if misdeed == "slow" and rank == culprit:
            for _ in range(20):  # a long phase of small pieces
                time.sleep(stall / 10)
                guard.at("evaluate", 5 * BATCH)
        guard.at("agree", 5 * BATCH)
        dist.barrier()
    print("DONE", flush=True)


def train_step(guard: Watchdog, images_seen: int, misdeed: str) -> None:
    time.sleep(PERIOD)  # so that everyone has been heard of
    guard.at("data", images_seen)
    if misdeed == "sleep":
        time.sleep(100)
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


if __name__ == "__main__":
    main()
