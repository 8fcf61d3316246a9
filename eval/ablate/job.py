"""One attempt at a cell: run its command, watch it, and say in its folder how it ended.

    python -m eval.ablate.job FOLDER COMMAND...

It outlives the driver that started it, forwards requests to stop, and needs no driver to record a
failure. Exit codes: 0 finished, 75 stopped before the end (start it again), 1 failed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from eval.ablate.folder import (
    LOG,
    RESULT,
    BusyError,
    Failure,
    claim_log,
    last_line,
    stamp,
    write_failure,
)

EXIT_AGAIN = 75  # EX_TEMPFAIL, as the training run says it
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def run_job(folder: str, command: Sequence[str], threads: int | None = None) -> int:
    """Run `command` FOLDER until it ends; both streams go to the cell's log.

    Args:
        folder: the cell's folder.
        command: what to run; the folder is its last word.
        threads: of the command; None leaves it alone.

    Returns:
        The exit code, as above.
    """
    place = Path(folder)
    try:
        log = claim_log(place)
    except BusyError:
        return EXIT_AGAIN
    with log:  # until the end is recorded, so that nobody starts it again in between
        if (place / RESULT).is_file():
            return 0
        log.write(f"--- {stamp()}: {' '.join(command)} {folder}\n".encode())
        log.flush()
        start = os.fstat(log.fileno()).st_size
        environment = dict(os.environ)
        environment.setdefault("TQDM_MININTERVAL", "30")  # a bar in a log is read afterwards
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        code, stopped = _watch([*command, folder], log.fileno(), environment)
        if (place / RESULT).is_file():
            return 0
        if stopped or code == EXIT_AGAIN:
            return EXIT_AGAIN
        write_failure(place, Failure(_reason(place / LOG, start, code), code))
        return 1


def _watch(command: list[str], log: int, environment: dict[str, str]) -> tuple[int, bool]:
    """(exit code, whether it was asked to stop)."""
    process: subprocess.Popen[bytes] | None = None
    stopped = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if process is not None:
            process.send_signal(signal.SIGTERM)

    for number in ASKING:
        signal.signal(number, forward)
    # A scheduler may signal every process of a job, and a signal that the command does not know
    # would kill it; one that is ignored when it starts stays so.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
    )
    signal.signal(signal.SIGUSR2, forward)
    if stopped:
        process.send_signal(signal.SIGTERM)
    return process.wait(), stopped


def _reason(log: Path, start: int, code: int) -> str:
    said = last_line(log, start)
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}{': ' if said else ''}{said}"
    if code == 0:
        return f"ended without a result{': ' if said else ''}{said}"
    return said or f"exit code {code}, and nothing in the log"


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1], sys.argv[2:]))
