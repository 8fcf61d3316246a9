"""Counters of reading: sums, taking, threads, workers."""

import os
import pickle
import threading
from dataclasses import asdict

from data_pipelines.counts import ReadCounts

EVERY = ReadCounts(1, 2, 3, 4, 5, 6, 0.5)


def test_sums() -> None:
    assert ReadCounts(2, 4, 6, 8, 10, 12, 1.0) == EVERY + EVERY
    total = ReadCounts()
    total += EVERY
    total.add(retries=2, wait_seconds=0.25)
    assert total == ReadCounts(1, 2, 3, 4, 7, 6, 0.75)
    assert EVERY.retries == 5


def test_take_leaves_nothing() -> None:
    counts = ReadCounts(**asdict(EVERY))
    assert counts.take() == EVERY
    assert counts == ReadCounts()
    assert counts.take() == ReadCounts()


def test_pickled() -> None:
    assert pickle.loads(pickle.dumps(EVERY)) == EVERY


def test_threads_lose_nothing() -> None:
    counts, taken = ReadCounts(), []

    def work() -> None:
        for _ in range(2000):
            counts.add(bytes_read=1)
            taken.append(counts.take())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum((each.bytes_read for each in taken), counts.bytes_read) == 8000


def test_a_lock_held_at_the_fork_does_not_block_the_child() -> None:
    from data_pipelines import counts

    with counts._LOCK:
        child = os.fork()
        if child == 0:
            ReadCounts().add(retries=1)
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
