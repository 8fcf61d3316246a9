"""The shards of a build made by jobs of a Slurm queue, by submitit (the extra `slurm`)."""

import contextlib
import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.building.make_shard import make_shard, read_result
from data_pipelines.building.tasks import RESULTS, Task, write_atomically
from data_pipelines.manifest import ShardSetError
from data_pipelines.slurm_queue import SlurmQueue, submitit_executor
from data_pipelines.sources.base import ImageSource
from data_pipelines.workers import Tick, check_workers, run_tasks

JOBS = "slurm_jobs.txt"  # ids of what was submitted, one a line
LOGS = "slurm"
FAILED = ".failed"  # ends the name of a file in which a job says why it failed
_POLL_S = 2.0
_LATE_S = 5.0  # a shared file system may show a result after its job has left the queue
_LEAVE_S = 30.0
_STOP_S = 120.0
_MAX_DEATHS = 2  # of jobs in a row that finish no shard
_LOG = logging.getLogger(__name__)


class SlurmExecutor:
    """One job for each range of shards; each runs as many processes as it has cores.

    A job that dies or runs out of time is submitted again with the shards that it has not finished.

    Args:
        folder: The unfinished build, on a file system that the nodes share.
        workers: Jobs in the queue at once, and ranges that the shards are cut into.
        options: As of `submitit_executor`.

    Raises:
        ValueError: submitit or Slurm is missing, or an option is wrong.
    """

    def __init__(self, folder: Path, workers: int, options: Mapping[str, object]) -> None:
        check_workers(workers)
        cores = options.get("cpus_per_task", 1)
        if not isinstance(cores, int) or cores < 1:
            raise ValueError(f"the Slurm option cpus_per_task is {cores!r}; it must be at least 1")
        name = folder.name.removesuffix(".partial")
        self._executor = submitit_executor(folder / LOGS, options, name=name)
        self._workers, self._cores = workers, cores

    def run(
        self,
        source: ImageSource,
        folder: Path,
        tasks: Sequence[Task],
        on_tick: Tick,
        on_result: Callable[[Task], None],
    ) -> None:
        """As `Executor.run`."""
        watch = _Watch(self._submit, source, folder.resolve(), on_tick, on_result)
        share = -(-len(tasks) // self._workers)
        try:
            for start in range(0, len(tasks), share):
                watch.submit(list(tasks[start : start + share]), deaths=0)
            while watch.jobs:
                watch.look()
                time.sleep(_POLL_S)
        except BaseException:
            _cancel([job.id for job in watch.jobs])
            raise

    def _submit(self, source: ImageSource, folder: Path, tasks: Sequence[Task]) -> str:
        try:
            job: Any = self._executor.submit(run_range, source, folder, tuple(tasks), self._cores)
        except Exception as error:
            raise ValueError(f"the job was not accepted: {error}") from None
        with open(folder / JOBS, "a", encoding="ascii") as file:
            file.write(f"{job.job_id}\n")
        return str(job.job_id)


def run_range(source: ImageSource, folder: Path, tasks: Sequence[Task], workers: int) -> None:
    """What a job does: makes a range of shards; says why in a file if it cannot."""
    try:
        run_tasks(
            partial(make_shard, source, folder),
            tasks,
            workers=workers,
            name=lambda task: f"shard {task.shard}",
            on_result=lambda task, result: None,
        )
    except (ValueError, OSError, RuntimeError) as error:
        write_atomically(_failure_file(folder, tasks[0].name), f"{error}\n")
        raise


def stop_left_over(folder: Path) -> None:
    """Cancels the jobs of a driver that was killed, and waits until they are gone.

    Raises:
        ShardSetError: They do not end.
    """
    if not (folder / JOBS).exists():
        return
    if shutil.which("squeue") is None:
        raise ShardSetError(
            f"{folder}: Slurm jobs of an earlier call may still write there, and there is no "
            f"`squeue` here to ask; make sure that there are none and remove {folder / JOBS}"
        )
    ids = (folder / JOBS).read_text(encoding="ascii").split()
    queue = SlurmQueue()
    left = [one for one in ids if queue.holds(one)]
    if left:
        _LOG.warning("cancelling the jobs of an earlier call: %s", ", ".join(left))
        _cancel(left)
    deadline = time.monotonic() + _STOP_S
    while any(queue.holds(one) for one in left):
        if time.monotonic() > deadline:
            raise ShardSetError(
                f"{folder}: jobs of an earlier call do not end ({', '.join(left)}); cancel them "
                f"and remove {folder / JOBS}"
            )
        time.sleep(_POLL_S)
    (folder / JOBS).unlink()


@dataclass
class _Job:
    """A job of the queue and its shards."""

    id: str
    name: str  # of its first shard when it was submitted
    tasks: list[Task]  # not finished yet
    deaths: int  # of jobs before it that finished none of these
    finished: int = 0
    ready_since: float | None = None
    gone_since: float | None = None


class _Watch:
    """The jobs that are in the queue, and what they have made."""

    def __init__(
        self,
        submit: Callable[[ImageSource, Path, Sequence[Task]], str],
        source: ImageSource,
        folder: Path,
        on_tick: Tick,
        on_result: Callable[[Task], None],
    ) -> None:
        self._submit, self._source, self._folder = submit, source, folder
        self._on_tick, self._on_result = on_tick, on_result
        self._queue = SlurmQueue()
        self.jobs: list[_Job] = []

    def submit(self, tasks: list[Task], deaths: int) -> None:
        _failure_file(self._folder, tasks[0].name).unlink(missing_ok=True)
        job_id = self._submit(self._source, self._folder, tasks)
        self.jobs.append(_Job(job_id, tasks[0].name, tasks, deaths))
        self._queue.forget()

    def look(self) -> None:
        """Collects what is new, and submits again what a job has left undone."""
        there_now = {path.name for path in (self._folder / RESULTS).iterdir()}
        for job in list(self.jobs):
            self._collect(job, there_now)
            now, there = time.monotonic(), self._queue.holds(job.id)
            if not job.tasks:  # it still writes its log for a moment
                job.ready_since = job.ready_since or now
                if not there or now - job.ready_since > _LEAVE_S:
                    self.jobs.remove(job)
            elif there:
                job.gone_since = None
            elif job.gone_since is None:
                job.gone_since = now
            elif now - job.gone_since > _LATE_S:
                self.jobs.remove(job)
                self._again(job)

    def _collect(self, job: _Job, results: Set[str]) -> None:
        for task in list(job.tasks):
            if f"{task.name}.json" not in results:
                continue
            result = read_result(self._folder, task)
            if result is None:
                continue
            job.tasks.remove(task)
            job.finished += 1
            rejected = result[1].rejected
            self._on_tick(task.items, tuple(rejected.elements()))
            self._on_result(task)

    def _again(self, job: _Job) -> None:
        with contextlib.suppress(FileNotFoundError):
            said = _failure_file(self._folder, job.name).read_text(encoding="utf-8")
            raise ShardSetError(f"job {job.id}: {said.strip()}")
        first = f"shard {job.tasks[0].shard}"
        deaths = 0 if job.finished else job.deaths + 1
        if deaths >= _MAX_DEATHS:
            raise ShardSetError(
                f"{first}: job {job.id}, which was to make it, ended without a word, as did the "
                f"one before; see its output in {self._folder / LOGS / job.id}"
            )
        _LOG.warning("%s: job %s ended before it was made; it is tried again", first, job.id)
        self.submit(job.tasks, deaths)


def _cancel(ids: Sequence[str]) -> None:
    if ids:
        subprocess.run(["scancel", *ids], check=False)


def _failure_file(folder: Path, name: str) -> Path:
    return folder / f"{name}{FAILED}"
