#!/usr/bin/env python3
"""Starts one training process for each GPU of this node, where there is no srun to do it.

    docker/node_train.py CONFIG [--section.key=value ...]

torchrun does that too, but ends with 1 whatever happened, and kills after 30 seconds. This ends
with the highest exit code of its processes, so that what restarts it can tell 75 (go on) from 2 (an
error that would come again), passes signals on, and leaves the time to whoever sent them.

Variables: NODES and NODE_RANK (by default one node), PROCESSES on each (by default one for a GPU),
MASTER_ADDR and MASTER_PORT of the first node (by default this one).
"""

import os
import signal
import subprocess
import sys
import time

# Once a process has ended, the others have so long: to save, or to find out who was lost. Like
# srun's --wait. Before training they would wait for a missing one much longer.
WAIT_SECONDS = 60.0


def count_gpus() -> int:
    """Those that the driver shows to this container; 0 without a driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return 0
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


def start(words: list[str], processes: int) -> list["subprocess.Popen[bytes]"]:
    """This node's part of the world: its processes, each told who it is."""
    nodes, node = int(os.environ.get("NODES", "1")), int(os.environ.get("NODE_RANK", "0"))
    world = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", "29500"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "WORLD_SIZE": str(nodes * processes),
    }
    command = [sys.executable, "-m", "simple_diffusion", "train", *words]
    return [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                **world,
                "RANK": str(node * processes + local),
                "LOCAL_RANK": str(local),
            },
        )
        for local in range(processes)
    ]


def end_code(code: int) -> int:
    """As shells say it: 128 and more for a process that a signal ended."""
    return code if code >= 0 else 128 - code


def main(words: list[str]) -> int:
    """Returns the exit code."""
    processes = int(os.environ.get("PROCESSES", "0")) or count_gpus()
    if not words or processes < 1:
        print(f"{__doc__}\nerror: no config, or no GPU and no PROCESSES", file=sys.stderr)
        return 2
    asked: list[int] = []
    # A container's end is told to its first process alone, which is this one.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    started = start(words, processes)
    first_end: float | None = None
    while any(process.poll() is None for process in started):
        while asked:
            told = asked.pop(0)
            for process in started:
                process.send_signal(told)  # nothing to one that has ended
        if first_end is None and any(process.poll() is not None for process in started):
            first_end = time.monotonic()
        if first_end is not None and time.monotonic() - first_end > WAIT_SECONDS:
            for process in started:
                process.kill()
        time.sleep(0.1)
    return max(end_code(process.wait()) for process in started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
