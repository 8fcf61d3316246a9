"""Slurm through submitit (the extra `slurm`): an executor with checked options, and the queue."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULT_TIMEOUT_MIN = 60  # submitit's own is 5 minutes, in which little gets done
_ASK_EVERY_S = 3.0
# Options that all of submitit's executors know; others are Slurm's own.
_SHARED_OPTIONS = (
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "name",
)


def submitit_executor(
    logs: Path, options: Mapping[str, object], *, name: str, cluster: str = "slurm"
) -> Any:
    """Makes a submitit executor.

    Args:
        logs: Folder for its jobs' files, on a file system that the nodes share.
        options: Of submitit's `update_parameters`; names that all its executors know are taken as
            they are, others as Slurm's own, so `partition` is `slurm_partition` there.
        name: Of the jobs, unless the options say another.
        cluster: ``slurm``, or submitit's stand-in ``local``.

    Raises:
        ValueError: submitit or Slurm is missing, or an option is wrong.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise ValueError(
            "--executor slurm needs submitit: pip install 'simple-diffusion[slurm]'"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=logs / "%j", cluster=cluster)
    except RuntimeError:
        raise ValueError(
            "--executor slurm: no `srun` here; start it where jobs are submitted from"
        ) from None
    parameters: dict[str, object] = {"name": name, "timeout_min": DEFAULT_TIMEOUT_MIN}
    for key, value in options.items():
        parameters[key if key in _SHARED_OPTIONS else f"slurm_{key}"] = value
    try:
        executor.update_parameters(**parameters)
    except (NameError, AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"--slurm options: {' '.join(str(error).split())}") from None
    return executor


class SlurmQueue:
    """The ids of this user's jobs that are waiting or running, asked of `squeue` now and then.

    Accounting, on which submitit itself relies, is not switched on everywhere.
    """

    def __init__(self) -> None:
        self._ids: frozenset[str] | None = None
        self._asked = 0.0

    def forget(self) -> None:
        """Asks anew before the next answer: a job has been submitted since."""
        self._ids = None

    def holds(self, job_id: str) -> bool:
        """Whether a job is there; a queue out of reach says yes."""
        if self._ids is None or time.monotonic() - self._asked > _ASK_EVERY_S:
            words = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
            answer = subprocess.run(words, capture_output=True, text=True, check=False)
            if answer.returncode:
                return True
            self._asked = time.monotonic()
            self._ids = frozenset(answer.stdout.split())
        return job_id in self._ids
