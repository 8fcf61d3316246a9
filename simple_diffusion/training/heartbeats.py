"""Signs of life that processes leave for each other in a store, by a thread of their own."""

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

_VERDICT = "watchdog/verdict"


@dataclass(frozen=True)
class Beat:
    """What a process says of itself.

    Attributes:
        rank: of the process.
        number: of the beat.
        host, pid: where it runs.
        phase: what its main thread does.
        images_seen: how far the run is there.
        arrivals: phases begun since `images_seen` last changed.
        still: seconds since the last of them.
        ended: whether it is about to end by itself.
        patience: how many times as long as others this phase may take.
    """

    rank: int
    number: int
    host: str
    pid: int
    phase: str
    images_seen: int
    arrivals: int
    still: float
    ended: bool
    patience: float = 1.0

    @property
    def name(self) -> str:
        """Which process it is."""
        return f"rank {self.rank} (node {self.host}, pid {self.pid})"


@dataclass
class Heard:
    """The newest beat that was read of a process.

    Attributes:
        beat: what it said.
        since: when this beat was first read, by this process's monotonic clock.
        read: when it was last read.
    """

    beat: Beat
    since: float
    read: float

    @property
    def silence(self) -> float:
        """Seconds for which nothing newer was read, though it was looked for."""
        return self.read - self.since


class Heartbeats:
    """One process's exchange with the store: its own beats go out, those of others come in.

    Nobody but its own thread ever waits for the store, which does not answer if the process that
    keeps it is stopped.

    Args:
        rank: of this process; rank 0 keeps the store.
        store: a client that nobody else uses.
        mine: gives the beat to send.
        period: seconds between two exchanges.

    Attributes:
        verdict: who is lost, in the words of the process that found out first.
    """

    def __init__(self, rank: int, store: Store, mine: Callable[[], Beat], period: float) -> None:
        self.verdict: str | None = None
        self._rank, self._store, self._mine, self._period = rank, store, mine, period
        self._wanted: frozenset[int] = frozenset()
        self._to_say: str | None = None
        self._heard: dict[int, Heard] = {}
        self._answered, self._broken = time.monotonic(), False
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._answered = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Send a last beat and end the thread, without waiting for long."""
        self._stopping = True
        self._wake.set()
        self._thread.join(2 * self._period)

    def heard(self, rank: int) -> Beat | None:
        """What was last read of a process; None if nothing was."""
        known = self._heard.get(rank)
        return None if known is None else known.beat

    def want(self, ranks: Iterable[int]) -> None:
        """Read the beats of these processes from now on; those of rank 0 always are."""
        self._wanted = frozenset(ranks)

    def listen(self, ranks: Iterable[int], silent_seconds: float) -> list[int]:
        """Listen to processes until each has shown life, or some are gone, or there is a verdict.

        Args:
            ranks: of other processes.
            silent_seconds: without a beat after which a process is taken to be dead or stopped.

        Returns:
            The processes that are gone: silent for so long, never heard of, or ended.
        """
        waiting, begun = set(ranks), time.monotonic()
        numbers: dict[int, int] = {}
        while waiting and self.verdict is None and self.unanswered <= 2 * silent_seconds:
            self.want(waiting)
            time.sleep(self._period / 4)
            asked = self._answered - begun > silent_seconds  # for so long, and got answers
            known = {rank: self._heard[rank] for rank in waiting if rank in self._heard}
            # Beats of before may be much older than the last ones that it sent.
            heard = {rank: one for rank, one in known.items() if one.read > begun}
            gone = {r for r, h in heard.items() if h.beat.ended or h.silence >= silent_seconds}
            if asked:
                gone |= waiting - set(heard)
            if gone:
                break
            waiting -= {
                r for r, h in heard.items() if numbers.get(r, h.beat.number) < h.beat.number
            }
            numbers = {r: h.beat.number for r, h in heard.items()} | numbers
        else:
            gone = {0} if self.unanswered > 2 * silent_seconds else set()
        self.want(())
        return sorted(gone)

    def say(self, verdict: str) -> None:
        """Tell everyone who is lost, if nobody has yet; wait a moment for it to be sent."""
        self._to_say = verdict
        self._wake.set()
        deadline = time.monotonic() + 2 * self._period
        while self.verdict is None and time.monotonic() < deadline and not self._broken:
            time.sleep(self._period / 10)

    @property
    def unanswered(self) -> float:
        """Seconds that the store has been silent for; infinite if its process is gone."""
        return float("inf") if self._broken else time.monotonic() - self._answered

    def _run(self) -> None:
        try:
            self._store.compare_set(_VERDICT, "", "")  # so that it can be read
            last = False
            while not last:
                last = self._stopping
                self._exchange()
                if not last:
                    self._wake.wait(self._period)
                    self._wake.clear()
        except RuntimeError:  # the connection is closed: rank 0 has ended
            self._broken = True

    def _exchange(self) -> None:
        begun = time.monotonic()
        self._store.set(_key(self._rank), json.dumps(asdict(self._mine())))
        if self._to_say is not None and self.verdict is None:
            self._store.compare_set(_VERDICT, "", self._to_say)
        keys = [_key(rank) for rank in sorted(self._wanted | {0})]
        if not self._store.check(keys):  # some have not begun
            keys = [key for key in keys if self._store.check([key])]
        verdict, *beats = self._store.multi_get([_VERDICT, *keys])
        now = time.monotonic()
        # After a silence of the store itself nobody else's has been measured.
        afresh = now - self._answered > 3 * self._period
        for text in beats:
            beat = Beat(**json.loads(text))
            before = self._heard.get(beat.rank)
            same = before is not None and before.beat.number == beat.number
            since = before.since if before is not None and same and not afresh else now
            self._heard[beat.rank] = Heard(beat, since, now)
        self.verdict = verdict.decode() or None
        self._answered = begun


def _key(rank: int) -> str:
    return f"watchdog/beat/{rank}"
