"""Jobs in a Slurm queue, by submitit (the extra `slurm`)."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.ablate.executors import Elsewhere, Job
from eval.ablate.folder import is_busy
from eval.ablate.job import run_job

JOB_ID = "slurm_job.txt"
ASK_EVERY_S = 3.0
DEFAULT_TIMEOUT_MIN = 60  # submitit's own is 5 minutes, in which few cells get far
SHARED_OPTIONS = (
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "name",
)


class SlurmExecutor:
    """One job of the queue for each attempt at a cell.

    Whether a job is still there is asked of `squeue`, for all of them at once: accounting, on which
    submitit itself relies, is not switched on everywhere. A job that is preempted or out of time
    saves, leaves, and is queued again by the driver. The ids of jobs are kept in the cells'
    folders, so that a new driver waits for those of a killed one; beyond that, that no cell is run
    twice at once rests on the file system's locks (flock) working across nodes.

    Args:
        out: the study's folder, on a file system that the nodes share.
        jobs: how many in the queue at once.
        options: of submitit's `update_parameters`; names that all its executors know are taken as
            they are, others as Slurm's own, so `partition` is `slurm_partition` there.
        command: what runs a cell, before the folder.
        cluster: ``slurm``, or submitit's stand-in ``local``.

    Raises:
        ValueError: submitit or Slurm is missing, or an option is wrong.
    """

    def __init__(
        self,
        out: Path,
        jobs: int,
        options: Mapping[str, object],
        command: Sequence[str],
        cluster: str = "slurm",
    ) -> None:
        try:
            import submitit
        except ModuleNotFoundError:
            raise ValueError(
                "--executor slurm needs submitit: pip install 'simple-diffusion[slurm]'"
            ) from None
        try:
            self._executor = submitit.AutoExecutor(folder=out / "slurm" / "%j", cluster=cluster)
        except RuntimeError:
            raise ValueError(
                "--executor slurm: no `srun` here; start the study where jobs are submitted from"
            ) from None
        parameters: dict[str, object] = {"name": out.name, "timeout_min": DEFAULT_TIMEOUT_MIN}
        for key, value in options.items():
            parameters[key if key in SHARED_OPTIONS else f"slurm_{key}"] = value
        try:
            self._executor.update_parameters(**parameters)
        except (NameError, AssertionError, ValueError, TypeError) as error:
            message = " ".join(str(error).split())
            raise ValueError(f"--slurm options: {message}") from None
        self.jobs = jobs
        self._command = tuple(command)
        threads = options.get("cpus_per_task")
        self._threads = threads if isinstance(threads, int) else None
        self._queue = _Queue() if cluster == "slurm" else None

    def submit(self, folder: Path) -> Job:
        try:
            job = self._executor.submit(
                run_job, str(folder.resolve()), self._command, self._threads
            )
        except Exception as error:
            raise ValueError(f"the job was not accepted: {error}") from None
        if self._queue is None:
            return _StandIn(job)
        (folder / JOB_ID).write_text(job.job_id, encoding="ascii")
        return SlurmJob(job.job_id, self._queue)

    def left_over(self, folder: Path) -> Job | None:
        path = folder / JOB_ID
        if self._queue is not None and path.is_file():
            job = SlurmJob(path.read_text(encoding="ascii", errors="replace")[:40], self._queue)
            if not job.ended():
                return job
        return Elsewhere(folder) if is_busy(folder) else None


class _Queue:
    """The ids of this user's jobs that are waiting or running, asked for now and then."""

    def __init__(self) -> None:
        self._ids: frozenset[str] = frozenset()
        self._asked = float("-inf")

    def holds(self, job_id: str, since: float) -> bool:
        """Whether a job that was submitted at `since` is there; a queue out of reach says yes."""
        if time.monotonic() - self._asked > ASK_EVERY_S or self._asked <= since:
            words = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
            answer = subprocess.run(words, capture_output=True, text=True, check=False)
            if answer.returncode:
                return True
            self._asked = time.monotonic()
            self._ids = frozenset(answer.stdout.split())
        return job_id in self._ids


class SlurmJob:
    """A job of the queue."""

    def __init__(self, job_id: str, queue: _Queue) -> None:
        self._id, self._queue = job_id, queue
        self._since = time.monotonic()

    def ended(self) -> bool:
        return not self._queue.holds(self._id, self._since)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the cluster's KillWait (30 seconds by default)."""
        subprocess.run(["scancel", self._id], check=False)

    def kill(self) -> None:
        subprocess.run(["scancel", "--signal=KILL", "--full", self._id], check=False)


class _StandIn:
    """A job of submitit's own process runner."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def ended(self) -> bool:
        return bool(self._job.done())

    def stop(self) -> None:
        self._job.cancel(check=False)

    def kill(self) -> None:
        self._job.cancel(check=False)
