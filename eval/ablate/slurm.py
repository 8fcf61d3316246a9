"""Jobs in a Slurm queue, by submitit (the extra `slurm`)."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.slurm_queue import SlurmQueue, submitit_executor
from eval.ablate.executors import Elsewhere, Job
from eval.ablate.folder import is_busy
from eval.ablate.job import run_job

JOB_ID = "slurm_job.txt"


class SlurmExecutor:
    """One job of the queue for each attempt at a cell.

    A job that is preempted or out of time saves, leaves, and is queued again by the driver. The
    ids of jobs are kept in the cells' folders, so that a new driver waits for those of a killed
    one; beyond that, that no cell is run twice at once rests on the file system's locks (flock)
    working across nodes.

    Args:
        out: the study's folder, on a file system that the nodes share.
        jobs: how many in the queue at once.
        options: as of `submitit_executor`.
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
        self._executor = submitit_executor(out / "slurm", options, name=out.name, cluster=cluster)
        self.jobs = jobs
        self._command = tuple(command)
        threads = options.get("cpus_per_task")
        self._threads = threads if isinstance(threads, int) else None
        self._queue = SlurmQueue() if cluster == "slurm" else None

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


class SlurmJob:
    """A job of the queue."""

    def __init__(self, job_id: str, queue: SlurmQueue) -> None:
        self._id, self._queue = job_id, queue
        queue.forget()

    def ended(self) -> bool:
        return not self._queue.holds(self._id)

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
