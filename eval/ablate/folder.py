"""The folder of a cell: its files, who is at work in it, and what became of it.

Nothing heavy is imported, since every job is watched by a process that needs only this.
"""

import fcntl
import json
import os
import re
import time
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

RESULT = "result.json"  # written by the job, last: its presence says that the cell is finished
FAILED = "failed.json"
LOG = "log.txt"
_TAIL_BYTES = 65_536
_MAX_FAILED_BYTES = 65_536
_MAX_LINE = 300
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class BusyError(RuntimeError):
    """Another process is at work in the folder."""


@dataclass(frozen=True)
class Failure:
    """Why a cell failed.

    Attributes:
        error: the last line that it printed.
        exit: its exit code; negative for the signal that killed it.
    """

    error: str
    exit: int


def claim_log(folder: Path) -> BufferedWriter:
    """Open the cell's log for appending, and hold its lock for as long as the file is open.

    Whoever inherits the open file holds the lock too, so it lasts until the whole job has ended,
    however it ends. File systems without locks are not protected; the log says so.

    Raises:
        BusyError: somebody else has it.
    """
    log = (folder / LOG).open("ab")
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise BusyError(f"{folder} is at work in another process") from None
    except OSError as error:
        log.write(
            f"no lock on this file system ({error.strerror}): do not start it twice\n".encode()
        )
        log.flush()
    return log


def is_busy(folder: Path) -> bool:
    """Whether a job is at work in the folder."""
    if not (folder / LOG).is_file():
        return False
    try:
        claim_log(folder).close()
    except BusyError:
        return True
    return False


def last_line(log: Path, start: int) -> str:
    """The last line that is not blank, from byte `start` on; plain text of a bounded length."""
    with log.open("rb") as file:
        file.seek(max(start, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        text = file.read(_TAIL_BYTES).decode(errors="replace")
    lines = [line.strip() for line in _UNPRINTABLE.sub("", text.replace("\r", "\n")).split("\n")]
    return next((line[:_MAX_LINE] for line in reversed(lines) if line), "")


def write_failure(folder: Path, failure: Failure) -> None:
    """Say why the cell failed, whole or not at all."""
    temporary = folder / f"{FAILED}.tmp"
    temporary.write_text(json.dumps(vars(failure)), encoding="utf-8")
    temporary.replace(folder / FAILED)


def read_failure(folder: Path) -> Failure | None:
    """Why the cell failed; None if it did not."""
    path = folder / FAILED
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_FAILED_BYTES:
            raise ValueError
        document = json.loads(path.read_bytes())
        return Failure(str(document["error"])[:_MAX_LINE], int(document["exit"]))
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        return Failure(f"{path} cannot be read", 1)


def stamp() -> str:
    """The time, for logs."""
    return time.strftime("%Y-%m-%d %H:%M:%S")
