"""Tasks dealt to processes of this machine: progress on the way, and no death goes unnoticed."""

import contextlib
import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from data_pipelines.manifest import ShardSetError

T = TypeVar("T")
R = TypeVar("R")

_TICK_S = 0.2  # between two messages of a worker about its progress
_MAX_DEATHS = 2  # of the processes that had a task
_LOG = logging.getLogger(__name__)


class Tick(Protocol):
    """Told now and then how far a task is: items done, and of them rejected by kind of reason."""

    def __call__(self, done: int, rejected: Sequence[str] = ()) -> None: ...


def check_workers(workers: int) -> None:
    """Raises ValueError unless there is at least one."""
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")


def no_tick(done: int, rejected: Sequence[str] = ()) -> None:
    """For those who do not care how far a task is."""


def run_tasks(
    function: Callable[[T, Tick], R],
    tasks: Sequence[T],
    *,
    workers: int,
    name: Callable[[T], str],
    on_result: Callable[[T, R], None],
    on_tick: Tick = no_tick,
) -> None:
    """Calls `function(task, tick)` for every task, by one worker in this process.

    With more workers these are processes of their own, started afresh (not forked from this one,
    whose threads and locks could not follow); scripts need the usual `if __name__ == "__main__"`.

    Args:
        function: Picklable, as are tasks and results.
        tasks: What to do; it is begun in this order, and may end in another.
        workers: Number of processes.
        name: What to call a task in messages.
        on_result: Called here with each task and its result, in the order in which they end.
        on_tick: Called here with the progress of all tasks.

    Raises:
        ShardSetError: The processes that had a task died twice, or `function` raised a ValueError
            or an OSError in another process. Tasks that were not finished are then given up.
        RuntimeError: `function` raised something else in another process.
    """
    check_workers(workers)
    if workers == 1 or len(tasks) <= 1:
        for task in tasks:
            on_result(task, function(task, on_tick))
        return
    pool = _Pool(function, tasks, min(workers, len(tasks)), name)
    try:
        pool.run(on_result, on_tick)
    finally:
        pool.close()


@dataclass(frozen=True)
class _Progress:
    done: int
    rejected: Counter[str]


@dataclass(frozen=True)
class _Done:
    result: Any


@dataclass(frozen=True)
class _Failed:
    message: str
    errno: int | None
    filename: str | None
    trace: str | None  # of what is no user error


class _Worker(Generic[T]):
    """A process, and the task it has."""

    def __init__(self, context: Any, function: Callable[..., Any]) -> None:
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()  # so that its death is the end of the connection
        self.task: T | None = None

    def give(self, task: T) -> None:
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # it died; the next look at it says so
            self.connection.send(task)

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class _Pool(Generic[T]):
    def __init__(
        self,
        function: Callable[..., Any],
        tasks: Sequence[T],
        workers: int,
        name: Callable[[T], str],
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # The server imports what is heavy once; the workers are forked from it in no time.
        self._context.set_forkserver_preload(["data_pipelines.decode"])
        self._function, self._name = function, name
        self._waiting = deque(tasks)
        self._deaths: Counter[str] = Counter()
        self._workers: list[_Worker[T]] = []
        for _ in range(workers):
            self._workers.append(_Worker(self._context, function))

    def run(self, on_result: Callable[[T, Any], None], on_tick: Tick) -> None:
        for worker in self._workers:
            worker.give(self._waiting.popleft())
        while busy := {w.connection: w for w in self._workers if w.task is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    self._replace(worker)
                    continue
                if isinstance(message, _Progress):
                    on_tick(message.done, tuple(message.rejected.elements()))
                    continue
                task, worker.task = worker.task, None
                assert task is not None
                if isinstance(message, _Failed):
                    _raise(message, self._name(task))
                on_result(task, message.result)
                if self._waiting:
                    worker.give(self._waiting.popleft())

    def _replace(self, worker: _Worker[T]) -> None:
        """Starts another process in place of a dead one, with the task it had."""
        assert worker.task is not None
        worker.process.join()
        name, how = self._name(worker.task), _how_it_died(worker.process.exitcode)
        self._deaths[name] += 1
        if self._deaths[name] >= _MAX_DEATHS:
            raise ShardSetError(
                f"{name}: the worker that made it {how}, as did the one before; if the system "
                "killed it for want of memory, use fewer workers"
            )
        _LOG.warning("%s: its worker %s; it is tried once more", name, how)
        worker.stop()
        fresh: _Worker[T] = _Worker(self._context, self._function)
        self._workers[self._workers.index(worker)] = fresh
        fresh.give(worker.task)

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()


def _serve(connection: Connection, function: Callable[..., Any]) -> None:
    """What a worker does, until its driver has no more for it or is gone."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver hears it and stops the workers
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            progress = _Messages(connection)
            try:
                message: _Done | _Failed = _Done(function(task, progress))
            except Exception as error:
                message = _failure(error)
            progress.flush()
            connection.send(message)


class _Messages:
    """A worker's Tick: tells the driver, but not too often."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told = time.monotonic()
        self._done, self._rejected = 0, Counter[str]()

    def __call__(self, done: int, rejected: Sequence[str] = ()) -> None:
        self._done += done
        self._rejected.update(rejected)
        if time.monotonic() - self._told >= _TICK_S:
            self.flush()

    def flush(self) -> None:
        if self._done or self._rejected:
            self._connection.send(_Progress(self._done, self._rejected))
        self._told = time.monotonic()
        self._done, self._rejected = 0, Counter()


def _failure(error: Exception) -> _Failed:
    expected = isinstance(error, (ValueError, OSError))
    trace = None if expected else traceback.format_exc()
    if isinstance(error, OSError) and error.errno is not None:
        filename = None if error.filename is None else os.fsdecode(error.filename)
        return _Failed(error.strerror or str(error), error.errno, filename, trace)
    return _Failed(str(error), None, None, trace)


def _raise(failed: _Failed, name: str) -> None:
    if failed.trace is not None:
        raise RuntimeError(f"{name}: an error in a worker\n{failed.trace}")
    if failed.errno is not None:
        raise OSError(failed.errno, failed.message, failed.filename)
    raise ShardSetError(failed.message)


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"
