"""Processes for tests that start at once: forked from one that has imported what they need."""

import multiprocessing as mp
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

# All that run in such processes: the server is started once, and for all of them.
PRELOAD = [
    "torch._dynamo",  # optimisers import it
    "tests.plan.sharing_ranks",
    "tests.training.checkpoint_ranks",
    "tests.training.driven",
    "tests.training.watched",
]


def forking() -> ForkServerContext:
    """A context whose processes have everything imported."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def start_server() -> None:
    """Have it import while other tests run, and before others start it without these modules."""
    forking()
    forkserver.ensure_running()


def print_to(path: Path) -> None:
    """What this process prints goes to a file from now on."""
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
