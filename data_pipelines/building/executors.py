"""Where the shards of a build are made."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from data_pipelines.building.make_shard import make_shard
from data_pipelines.building.tasks import Task
from data_pipelines.sources.base import ImageSource
from data_pipelines.workers import Tick, check_workers, run_tasks

EXECUTORS = ("local", "slurm")


class Executor(Protocol):
    """Makes the shards of an unfinished build."""

    def run(
        self,
        source: ImageSource,
        folder: Path,
        tasks: Sequence[Task],
        on_tick: Tick,
        on_result: Callable[[Task], None],
    ) -> None:
        """Makes shards, in any order.

        Args:
            source: Where the images come from.
            folder: Folder of the unfinished build.
            tasks: What to make.
            on_tick: Told how many items are done.
            on_result: Called with each task whose result file is there.

        Raises:
            ShardSetError: A shard could not be made; the finished ones stay.
        """


class LocalExecutor:
    """Processes of this machine; with one worker, this process."""

    def __init__(self, workers: int) -> None:
        check_workers(workers)
        self._workers = workers

    def run(
        self,
        source: ImageSource,
        folder: Path,
        tasks: Sequence[Task],
        on_tick: Tick,
        on_result: Callable[[Task], None],
    ) -> None:
        run_tasks(
            partial(make_shard, source, folder),
            tasks,
            workers=self._workers,
            name=lambda task: f"shard {task.shard}",
            on_result=lambda task, _: on_result(task),
            on_tick=on_tick,
        )


def make_executor(
    name: str, folder: Path, workers: int, slurm_options: Mapping[str, object]
) -> Executor:
    """Makes an executor.

    Args:
        name: One of EXECUTORS.
        folder: Folder of the unfinished build.
        workers: Processes, or jobs in the queue at once.
        slurm_options: Of the Slurm jobs.

    Raises:
        ValueError: An unknown name, an option that does not go with it, or Slurm or submitit is
            missing.
    """
    check_workers(workers)
    if name == "slurm":
        from data_pipelines.building.slurm import SlurmExecutor

        return SlurmExecutor(folder, workers, slurm_options)
    if name != "local":
        raise ValueError(f"executor is {name!r}; it must be one of {', '.join(EXECUTORS)}")
    if slurm_options:
        raise ValueError(
            f"the Slurm option {next(iter(slurm_options))!r} is of no use with the executor "
            "'local'; add --executor slurm, or leave it out"
        )
    return LocalExecutor(workers)
