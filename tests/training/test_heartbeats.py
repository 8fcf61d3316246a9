"""Signs of life in a store: who is heard, who is silent, and what all are told."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from torch._C._distributed_c10d import TCPStore

from simple_diffusion.training.heartbeats import Beat, Heard, Heartbeats

PERIOD = 0.05
LONG = 30.0  # seconds that nothing here takes, unless something is wrong


def beat(rank: int, number: int = 1, *, ended: bool = False) -> Beat:
    return Beat(rank, number, f"n{rank}", 100 + rank, "step", 8, 0, 0.5, ended)


class Process:
    """A stand-in for one process: its exchange with the store, and how it says it is."""

    def __init__(self, rank: int, server: TCPStore) -> None:
        client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
        self.rank, self.number, self.ended = rank, 0, False
        self.beats = Heartbeats(rank, client, self._beat, PERIOD)

    def _beat(self) -> Beat:
        self.number += 1
        return beat(self.rank, self.number, ended=self.ended)


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def process(server: TCPStore) -> Iterator[Callable[[int], Process]]:
    """Makes processes that beat until the test ends."""
    made: list[Process] = []

    def make(rank: int) -> Process:
        made.append(Process(rank, server))
        made[-1].beats.start()
        return made[-1]

    yield make
    for one in made:
        one.beats.stop()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(PERIOD / 5)


def test_names() -> None:
    assert beat(3).name == "rank 3 (node n3, pid 103)"


def test_silence_is_counted_while_one_listens_only() -> None:
    """From the first reading of a beat to the last: not until now, when nobody may have looked."""
    assert Heard(beat(0), since=10.0, read=13.5).silence == 3.5


def test_those_who_live_are_not_gone(process: Callable[[int], Process]) -> None:
    first, second, third = (process(rank) for rank in range(3))
    assert first.beats.listen([1, 2], LONG) == []
    assert third.beats.listen([0, 1], LONG) == []
    heard = first.beats.heard(2)
    assert heard is not None
    assert (heard.rank, heard.host, heard.images_seen) == (2, "n2", 8)
    assert second.beats.verdict is None


def test_one_that_ended_is_gone_at_once(process: Callable[[int], Process]) -> None:
    first, second = process(0), process(1)
    second.ended = True
    second.beats.stop()  # with a last beat, which says so
    assert first.beats.listen([1], LONG) == [1]
    heard = first.beats.heard(1)
    assert heard is not None
    assert heard.ended


def test_one_that_falls_silent_is_gone(process: Callable[[int], Process]) -> None:
    """Its last beats, of when nobody listened, are no sign that it still lives."""
    first, second = process(0), process(1)
    assert first.beats.listen([1], LONG) == []
    beats = second.number
    until(lambda: second.number > beats + 3)
    second.beats.stop()
    assert first.beats.listen([1], 20 * PERIOD) == [1]


def test_one_that_was_never_heard_of_is_gone(process: Callable[[int], Process]) -> None:
    first, _ = process(0), process(1)
    assert first.beats.listen([1, 2], 20 * PERIOD) == [2]
    assert first.beats.heard(2) is None


def test_the_first_verdict_counts_for_all(process: Callable[[int], Process]) -> None:
    everyone = [process(rank) for rank in range(3)]
    everyone[1].beats.say("rank 2 is gone")
    until(lambda: everyone[1].beats.verdict is not None)
    everyone[0].beats.say("rank 1 is gone")
    until(lambda: all(one.beats.verdict is not None for one in everyone))
    assert {one.beats.verdict for one in everyone} == {"rank 2 is gone"}
    assert everyone[2].beats.listen([7], LONG) == []  # no need to look any further


class Frozen:
    """A store whose process was stopped: it answers once and then never, till it is ended."""

    def __init__(self) -> None:
        self.released, self.asked = threading.Event(), threading.Event()

    def compare_set(self, key: str, expected: str, wanted: str) -> bytes:
        return b""

    def set(self, key: str, value: str) -> None:
        self.asked.set()
        self.released.wait(LONG)
        raise RuntimeError("Connection closed by peer")


class Closed(Frozen):
    """A store whose process has ended."""

    def set(self, key: str, value: str) -> None:
        self.asked.set()
        raise RuntimeError("Connection reset by peer")


@pytest.mark.parametrize("kind", [Frozen, Closed])
def test_without_its_store_rank_0_is_gone(kind: type[Frozen]) -> None:
    """Whoever asks is never held up by the store."""
    store = kind()
    beats = Heartbeats(2, store, lambda: beat(2), PERIOD)  # type: ignore[arg-type]
    beats.start()
    assert store.asked.wait(LONG)
    assert beats.listen([0, 1], 4 * PERIOD) == [0]
    beats.say("rank 0 is gone")
    assert beats.verdict is None  # it could not be sent
    store.released.set()
    beats.stop()
