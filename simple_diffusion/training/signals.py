"""Ctrl-C and the signals of schedulers, noticed at the next safe point instead of at once."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_REQUEUE = 75  # EX_TEMPFAIL: saved, run the same command again
EXIT_INTERRUPTED = 130  # 128 + SIGINT: saved, the person asked


class StopRequested(BaseException):
    """Raised inside long work (validation, sampling) when a stop was asked for.

    Not an Exception, so that no handler of others' errors on the way takes it for one.
    """


class StopSignals:
    """Context manager that turns SIGINT, SIGTERM and SIGUSR1 into `received`.

    A second SIGINT raises KeyboardInterrupt at once.

    Attributes:
        received: the first signal that came, None so far.
        since: when it was heard of, as time.monotonic() says it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.since: float | None = None
        self._previous: dict[int, object] = {}
        self._waiting = False

    def __enter__(self) -> "StopSignals":
        for number in STOPPING:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """While inside, a signal raises StopRequested at once: for waiting, not for work.

        Raises:
            StopRequested: also at the start, if one has come already.
        """
        self._waiting = True
        try:
            if self.received is not None:
                raise StopRequested
            yield
        finally:
            self._waiting = False

    def hear(self, number: int) -> None:
        """Take note of a signal, of this process or another."""
        self.received = signal.Signals(number)
        if self.since is None:
            self.since = time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.hear(number)
        if self._waiting:
            raise StopRequested
