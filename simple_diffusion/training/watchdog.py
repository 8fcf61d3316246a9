"""Notices that training makes no progress, and which process the others wait for.

A process that is killed or stopped leaves the others waiting in a collective, where they can say
nothing, and where some back ends let them wait for ever. So every process tells where it is to a
store that rank 0 keeps, and whoever waits for too long looks up who is missing.
"""

import faulthandler
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from simple_diffusion.training.heartbeats import Beat, Heartbeats
from simple_diffusion.training.signals import EXIT_REQUEUE

PERIOD = 1.0  # seconds between two beats
SILENT_PERIODS = 5  # without a beat: that process is dead or stopped
VERDICT_SECONDS = 30.0  # without progress, once another process has said who is lost
# Phases in which one call may take long and cannot say how far it is: those of large files, and of
# work that is done once. They have so many times `stall_seconds`.
PATIENCE = {"start": 6.0, "save": 6.0, "final": 6.0}
AGREE = "agree"  # the phase in which a process waits for the others
_NAMED = 4  # processes that a message names


def end_for_requeue(message: str) -> None:
    """Say it and end this process at once, with the code that launchers start it again for."""
    text = f"watchdog: {message}. The same command goes on from the newest checkpoint"
    print(text, file=sys.stderr, flush=True)
    os._exit(EXIT_REQUEUE)


class Watchdog:
    """Context manager that notices when this process or another makes no progress, and which.

    Args:
        rank: of this process.
        processes: how many there are.
        store: of `heartbeat_store`; None for a process that is alone.
        stall_seconds: without a call of `at` after which training has stalled.
        on_stall: told so, once, in a thread, with a message that names the process that the
            others wait for. By default it ends this process with exit code 75.
        period: seconds between two signs of life.
    """

    def __init__(
        self,
        *,
        rank: int,
        processes: int,
        store: TCPStore | None,
        stall_seconds: float,
        on_stall: Callable[[str], None] = end_for_requeue,
        period: float = PERIOD,
    ) -> None:
        assert (store is None) == (processes == 1)
        self._rank, self._processes, self._period = rank, processes, period
        self._stall_seconds, self._on_stall = stall_seconds, on_stall
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._at = (0, "start", 0, time.monotonic())
        self._number, self._asked, self._ended = 0, False, threading.Event()
        self._beats: Heartbeats | None = None
        if store is not None:
            # Its own connection: a client lets one thread at a time wait for the store.
            client = TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
            self._beats = Heartbeats(rank, client, self._beat, period)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        arrivals, phase, images_seen, _ = self._at
        self._at = arrivals, phase, images_seen, time.monotonic()
        if self._beats is not None:
            self._beats.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(2 * self._period)
        if self._beats is not None:
            if self._rank == 0:
                self._linger(self._beats)
            self._beats.stop()

    def at(self, phase: str, images_seen: int) -> None:
        """The main thread begins this. Cheap; call it often.

        Args:
            phase: ``data``, ``step``, ``save`` ...; ``agree`` for waiting for other processes.
            images_seen: by the run so far.
        """
        arrivals, _, before, _ = self._at
        arrivals = arrivals + 1 if images_seen == before else 0
        self._at = arrivals, phase, images_seen, time.monotonic()

    def alive(self) -> None:
        """The main thread goes on with the phase that it is in."""
        self._at = *self._at[:3], time.monotonic()

    def lost(self, seconds: float) -> str | None:
        """Which processes are gone, after messages between processes have failed.

        Args:
            seconds: to wait for it to show.

        Returns:
            Such as ``rank 1 (node n2, pid 123), last seen at image 4800 in step``; None if all
            are there.
        """
        if self._beats is None:
            return None
        self._asked = True  # time spent here is no stall
        try:
            deadline = time.monotonic() + seconds
            while (gone := self._find_gone(self._beats)) is None and time.monotonic() < deadline:
                time.sleep(self._period)
            return gone
        finally:
            self.alive()
            self._asked = False

    def _watch(self) -> None:
        """Until the end, or until a stall."""
        while not self._ended.wait(self._period):
            before = self._at
            _, phase, images_seen, since = before
            still = time.monotonic() - since
            if still < self._limit * PATIENCE.get(phase, 1.0) or self._asked:
                continue
            who = self._diagnose()
            if who is None:  # the others are busy with something long: look again later
                self._ended.wait(self._stall_seconds / 4)
                continue
            if self._ended.wait(self._period) or self._at is not before or self._asked:
                continue  # it went on meanwhile, as after a SIGSTOP of this process
            faulthandler.dump_traceback(file=2, all_threads=True)
            me = self._beat().name
            place = f"in {phase} at image {images_seen}"
            self._on_stall(f"{me} has made no progress for {still:.0f} s {place}; {who}")
            return

    @property
    def _limit(self) -> float:
        told = self._beats is not None and self._beats.verdict is not None
        return min(VERDICT_SECONDS, self._stall_seconds) if told else self._stall_seconds

    def _diagnose(self) -> str | None:
        """Who it is that all wait for, which they are told; None if that process makes progress."""
        if self._beats is None:
            return "it is the only process"
        who = self._find_gone(self._beats)
        if who is None:
            heard = map(self._beats.heard, range(self._processes))
            beats = [beat for beat in heard if beat is not None and beat.rank != self._rank]
            behind = find_behind([self._beat(), *beats])
            if min(beat.still / beat.patience for beat in behind) < self._stall_seconds / 2:
                return None
            if len(behind) == self._processes:
                return f"all {self._processes} processes are at the same place"
            who = self._tell(self._beats, _several([_place(beat) for beat in behind]))
        if self._rank == 0:
            time.sleep(2 * self._period)  # the store ends with this process: let others read it
        return f"all wait for {who}"

    def _find_gone(self, beats: Heartbeats) -> str | None:
        """The processes that are dead or stopped, in words; None if all are there."""
        others = [rank for rank in range(self._processes) if rank != self._rank]
        gone = beats.listen(others, SILENT_PERIODS * self._period)
        if beats.verdict is not None or not gone:
            return beats.verdict
        return self._tell(beats, _several([_end(rank, beats.heard(rank)) for rank in gone]))

    def _tell(self, beats: Heartbeats, who: str) -> str:
        """Tell all processes; returns what they were told first."""
        beats.say(who)
        return beats.verdict or who

    def _linger(self, beats: Heartbeats) -> None:
        """Keep the store until the others have ended too, or a moment: they may need it."""
        deadline = time.monotonic() + 3 * self._period
        others = [rank for rank in range(self._processes) if rank != self._rank]
        beats.want(others)
        while time.monotonic() < deadline:
            heard = map(beats.heard, others)
            if all(beat is not None and beat.ended for beat in heard):
                return
            time.sleep(self._period / 10)

    def _beat(self) -> Beat:
        arrivals, phase, images_seen, since = self._at
        self._number += 1
        return Beat(
            rank=self._rank,
            number=self._number,
            host=self._host,
            pid=self._pid,
            phase=phase,
            images_seen=images_seen,
            arrivals=arrivals,
            still=time.monotonic() - since,
            ended=self._ended.is_set(),
            patience=PATIENCE.get(phase, 1.0),
        )


def find_behind(beats: Sequence[Beat]) -> list[Beat]:
    """Of processes that all live, and wait for one another: those that the others wait for.

    They have seen the fewest images; are not waiting for others themselves; and have begun the
    fewest phases since.
    """
    fewest = min(beat.images_seen for beat in beats)
    slow = [beat for beat in beats if beat.images_seen == fewest]
    busy = [beat for beat in slow if beat.phase != AGREE] or slow
    arrivals = min(beat.arrivals for beat in busy)
    return [beat for beat in busy if beat.arrivals == arrivals]


def heartbeat_store(rank: int, processes: int) -> TCPStore | None:
    """A store that rank 0 keeps on a free port; None for a process that is alone.

    All processes of the default group call it.
    """
    if processes == 1:
        return None
    place: list[tuple[str, int] | None] = [None]
    if rank == 0:
        _allow_files(4 * processes)  # each process has connections here, and the group's own store
        host = os.environ.get("MASTER_ADDR", socket.gethostname())
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        place = [(host, store.port)]
    dist.broadcast_object_list(place, src=0)
    if rank != 0:
        assert place[0] is not None
        store = TCPStore(*place[0], is_master=False, wait_for_workers=False)
    return store


def _allow_files(more: int) -> None:
    """Raise the limit of open files, as far as this process may: many systems set it to 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wish = soft + more
        wish = wish if hard == resource.RLIM_INFINITY else min(hard, wish)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))


def _several(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", and ".join([*names[:_NAMED], *([f"{more} more"] if more > 0 else [])])


def _end(rank: int, beat: Beat | None) -> str:
    if beat is None:
        return f"rank {rank}, of which nothing was ever heard"
    seen = "ended by itself" if beat.ended else "last seen"
    return f"{beat.name}, {seen} at image {beat.images_seen} in {beat.phase}"


def _place(beat: Beat) -> str:
    return f"{beat.name}, in {beat.phase} at image {beat.images_seen} for {beat.still:.0f} s"
