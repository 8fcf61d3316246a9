"""The bytes of a URL: retried, continued and checked, whatever the server does.

A server that fails, stalls or cuts the line is asked again after a random pause, from the byte
that is missing (full jitter: Brooker, 2015, "Exponential Backoff and Jitter").
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from data_pipelines.counts import ReadCounts
from data_pipelines.manifest import ShardSetError
from data_pipelines.remote.request import (
    Damaged,
    Stalled,
    TooSlow,
    is_final,
    reason,
    request,
    shown,
)

MOST_DAMAGED = 3  # downloads of a file with wrong bytes before it is given up
_SLOWEST = 32 * 2**10  # bytes/s; what arrives more slowly is as good as nothing
_POLL_S = 0.05
# Pauses need no seed, and must not draw from the generator that the user seeds.
_RANDOM = random.SystemRandom()

Stop: TypeAlias = Callable[[], bool]


class ShardFetchError(ShardSetError):
    """A file of a remote set cannot be had.

    Attributes:
        url: Where it should be, without what may be secret.
        tries: How often it was asked for.
        reason: What went wrong the last time.
    """

    def __init__(self, url: str, tries: int, reason: str) -> None:
        super().__init__(f"{url}: not fetched after {tries} {_tries(tries)}: {reason}")
        self.url, self.tries, self.reason = url, tries, reason

    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        return type(self), (self.url, self.tries, self.reason)


class Stopped(Exception):  # noqa: N818  # no error: the caller asked for it
    """The caller wanted no more of it."""


@dataclass(frozen=True)
class Limits:
    """When to ask a server again and when to give it up.

    Attributes:
        stall_s: A read that brings nothing for so many seconds is broken off.
        give_up_s: Without progress for so long, the file is given up. A server that sends less
            than 32 KiB/s counts as making none.
        backoff_s: The first pause is drawn from 0 to this; every further one from twice as much.
        longest_pause_s: Up to this.
    """

    stall_s: float = 30.0
    give_up_s: float = 600.0
    backoff_s: float = 0.5
    longest_pause_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("stall_s", "give_up_s", "backoff_s", "longest_pause_s"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


class Clock:
    """How much longer to be patient: progress earns time, up to `give_up_s` from now."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._end = time.monotonic() + limits.give_up_s

    @property
    def left(self) -> float:
        """Seconds, negative when it is over."""
        return self._end - time.monotonic()

    def progress(self, amount: int) -> None:
        """Tells that so many bytes arrived."""
        latest = time.monotonic() + self.limits.give_up_s
        self._end = min(latest, self._end + amount / _SLOWEST)

    def excuse(self, seconds: float) -> None:
        """Tells that so much time passed which was not the server's."""
        self._end += seconds


class Sink(Protocol):
    """What has arrived of a file."""

    def length(self) -> int:
        """Number of bytes."""

    def blocks(self) -> Iterable[bytes]:
        """The bytes."""

    def append(self, block: bytes) -> None:
        """Adds bytes at the end."""

    def clear(self) -> None:
        """Throws all bytes away."""


class _Memory:
    def __init__(self) -> None:
        self.data = bytearray()

    def length(self) -> int:
        return len(self.data)

    def blocks(self) -> Iterable[bytes]:
        return [bytes(self.data)]

    def append(self, block: bytes) -> None:
        self.data += block

    def clear(self) -> None:
        self.data.clear()


def never() -> bool:
    """The `stop` of a caller who wants the whole."""
    return False


def fetch_bytes(
    url: str,
    *,
    most: int,
    digest: str = "",
    limits: Limits,
    counts: ReadCounts | None = None,
) -> bytes:
    """Returns a small remote file.

    Args:
        url: Where it is.
        most: Largest size in bytes.
        digest: Its SHA-256; empty if not known.
        limits: When to ask again and when to give up.
        counts: Where to count; nowhere by default.

    Raises:
        ShardFetchError: It is not there, larger, or the server failed for too long.
        ValueError: The kind of URL is not known, or needs an extra.
    """
    memory = _Memory()
    fetch(
        url,
        memory,
        size=None,
        most=most,
        digest=digest,
        clock=Clock(limits),
        counts=ReadCounts() if counts is None else counts,
    )
    return bytes(memory.data)


def fetch(
    url: str,
    sink: Sink,
    *,
    size: int | None,
    most: int,
    digest: str,
    clock: Clock,
    counts: ReadCounts,
    stop: Stop = never,
) -> None:
    """Brings a remote file into `sink`, going on from what is there.

    Args:
        url: Where it is.
        sink: Receives it.
        size: Its size in bytes, None where it is not known.
        most: Largest size in bytes.
        digest: Its SHA-256; empty if not known.
        clock: How long to be patient.
        counts: Where to count bytes, retries and damage.
        stop: Asked often; the download ends where it returns True.

    Raises:
        ShardFetchError: It is not there, larger, damaged three times, or the server failed for
            too long.
        Stopped: `stop` returned True.
        ShardSetError: The sink's disk is full.
        ValueError: The kind of URL is not known, or needs an extra.
    """
    _Download(url, sink, size, most, digest, clock, counts, stop).run()


class _Download:
    """One file's way here."""

    def __init__(
        self,
        url: str,
        sink: Sink,
        size: int | None,
        most: int,
        digest: str,
        clock: Clock,
        counts: ReadCounts,
        stop: Stop,
    ) -> None:
        self.url, self.sink, self.size, self.most = url, sink, size, most
        self.digest, self.clock, self.counts, self.stop = digest, clock, counts, stop
        self.tries = 0
        self.failures = 0  # in a row, without a byte between them

    def run(self) -> None:
        damaged, last = 0, ""
        self._start()
        while True:
            try:
                if self.sink.length() != self.size:  # a killed process may have had it all
                    self.tries += 1
                    self._try()
                self._check()
                return
            except Damaged as error:
                damaged += 1
                self.counts.add(checksum_failures=1)
                self.sink.clear()
                self._start()
                if damaged == MOST_DAMAGED:
                    raise self._error(str(error)) from None
                self._pause(0.0)
            except (ShardSetError, Stopped):
                raise
            except Exception as error:  # file systems raise what they like
                if is_final(error):
                    raise self._error(reason(error, self.url)) from None
                if not isinstance(error, TooSlow) or not last:
                    last = reason(error, self.url)
                if not self._pause(getattr(error, "retry_after", 0.0)):
                    raise self._error(
                        f"too little arrived for {self.clock.limits.give_up_s:g} s; {last}"
                    ) from None
                self.counts.add(retries=1)

    def _start(self) -> None:
        self.hash = hashlib.sha256()
        if self.digest:
            for block in self.sink.blocks():
                self.hash.update(block)

    def _try(self) -> None:
        """Reads from the first missing byte to the end."""
        offset = self.sink.length()
        answer = request(self.url, offset, self.clock.limits.stall_s)
        try:
            start, total = answer.opened(self._wait)
            self._check_length(total)
            skip = offset - start  # a server without ranges begins again
            while self.size is None or self.sink.length() < self.size:
                block = answer.block(self._wait)
                if not block:
                    break
                self.counts.add(bytes_fetched=len(block))
                self._append(block[skip:])
                skip = max(0, skip - len(block))
        finally:
            answer.close()
        expected = total if self.size is None else self.size
        if expected is not None and self.sink.length() < expected:
            raise ConnectionError(f"the answer ended after {self.sink.length()} of {expected}")

    def _append(self, block: bytes) -> None:
        if not block:
            return
        if self.size is None and self.sink.length() + len(block) > self.most:
            raise self._error(f"larger than the {self.most} bytes that such a file may have")
        if self.size is not None:
            block = block[: self.size - self.sink.length()]
        self.sink.append(block)
        if self.digest:
            self.hash.update(block)
        self.clock.progress(len(block))
        self.failures = 0

    def _check_length(self, total: int | None) -> None:
        if total is None:
            return
        if self.size is not None and total != self.size:
            raise Damaged(f"the server's file has {total} bytes, the manifest says {self.size}")
        if self.size is None and total > self.most:
            raise self._error(f"{total} bytes, more than the {self.most} that such a file may have")

    def _check(self) -> None:
        if self.digest and self.hash.hexdigest() != self.digest:
            raise Damaged(
                f"its SHA-256 is {self.hash.hexdigest()}, the manifest says {self.digest}; "
                "upload the file again"
            )

    def _wait(self, ready: Callable[[float], bool]) -> None:
        """Waits until `ready(seconds)`, not longer than a stall, the clock or `stop` allow."""
        end = time.monotonic() + self.clock.limits.stall_s
        while True:  # asked even where bytes keep dripping in
            if self.stop():
                raise Stopped
            if self.clock.left <= 0:
                raise TooSlow("the server sends too slowly")
            if ready(_POLL_S):
                return
            if time.monotonic() > end:
                raise Stalled(f"nothing arrived for {self.clock.limits.stall_s:g} s")

    def _pause(self, least: float) -> bool:
        """Waits before the next try; False at once if patience would not last for it."""
        limits = self.clock.limits
        longest = min(limits.longest_pause_s, limits.backoff_s * 2.0 ** min(self.failures, 60))
        self.failures += 1
        # A server may ask for a pause; half of the patience is kept for asking again after it.
        pause = max(_RANDOM.uniform(0.0, longest), min(least, self.clock.left / 2))
        if pause >= self.clock.left:
            return False
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            if self.stop():
                raise Stopped
            time.sleep(min(left, _POLL_S))
        return True

    def _error(self, why: str) -> ShardFetchError:
        return ShardFetchError(shown(self.url), self.tries, why)


def _tries(number: int) -> str:
    return "try" if number == 1 else "tries"
