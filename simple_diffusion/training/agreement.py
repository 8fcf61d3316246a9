"""What all processes decide together: whether to stop, and whether the next step can be done.

On the CPU, over a process group of its own, so that nobody ever waits for a device's queue.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from simple_diffusion.training.signals import STOPPING, StopRequested, StopSignals

T = TypeVar("T")
POLL_SECONDS = 0.5
STOP_KEY = "stop"


class PeerFailedError(ValueError):
    """Another process cannot go on, and says itself why."""


class Agreement:
    """Turns what one process knows into what all act on.

    Args:
        signals: what this process was told.
        group: a gloo group over all processes, used for nothing else; None for one that is alone.
        store: where processes see each other's wish to stop while they work for long by themselves;
            None for one that is alone.
        alive: told whenever long work calls `check`.
    """

    def __init__(
        self,
        signals: StopSignals,
        group: dist.ProcessGroup | None,
        store: Store | None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.signals, self._group, self._store, self._alive = signals, group, store, alive
        self._polled = 0.0

    def check(self) -> None:
        """Raise StopRequested if this process was told to stop, or another said that it was.

        Cheap; for the inside of work that ends with `together` or `settle`.
        """
        self._alive()
        if self.signals.received is not None:
            if self._store is not None:
                self._store.set(STOP_KEY, "1")
            raise StopRequested
        if self._store is not None and time.monotonic() - self._polled > POLL_SECONDS:
            self._polled = time.monotonic()
            if self._store.check([STOP_KEY]):
                raise StopRequested

    def settle(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process has it set. Every process calls this, in step.

        Raises:
            StopRequested: on every process if any got a signal; all then agree which it was.
            RuntimeError: a process is gone.
        """
        if self._group is None:
            if self.signals.received is not None:
                raise StopRequested
            return flags
        mine = [self.signals.received == number for number in STOPPING] + list(flags)
        counts = torch.tensor(mine, dtype=torch.int32)
        dist.all_reduce(counts, group=self._group)
        anyone = [count > 0 for count in counts.tolist()]
        for number, heard in zip(STOPPING, anyone, strict=False):
            if heard:
                self.signals.hear(number)
                raise StopRequested
        # A signal may have come since the counting: it is for the next time.
        return tuple(anyone[len(STOPPING) :])

    def gather(self, value: T) -> list[T]:
        """What every process has to say, in the order of their ranks. All call it, in step."""
        if self._group is None:
            return [value]
        values: list[T] = [value] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around work that each process does by itself, calling `check` now and then.

        Raises:
            StopRequested: at the end, on every process if any broke off.
            PeerFailedError: another process failed; on that one its own error goes on.
        """
        stopped, failure = False, None
        try:
            yield
        except StopRequested:
            stopped = True
        except Exception as error:
            if self._group is None:
                raise
            failure = error
        anyone_stopped, anyone_failed = self.settle(stopped, failure is not None)
        if failure is not None:
            raise failure
        if anyone_failed:
            raise PeerFailedError("another process failed; see its own message")
        if anyone_stopped:  # its signal is known to its process, and to all in a moment
            raise StopRequested
