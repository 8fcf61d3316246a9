"""What one process is told, all act on, at the same moment."""

import signal
import time
from typing import Any

import pytest
import torch.distributed as dist

from simple_diffusion.training import agreement as room
from simple_diffusion.training.agreement import Agreement, PeerFailedError
from simple_diffusion.training.signals import StopRequested, StopSignals
from tests.training.checkpoint_ranks import run_ranks


def agreement_of(rank: int, group: dist.ProcessGroup) -> Agreement:
    port: list[Any] = [None]
    store = None
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = [store.port]
    dist.broadcast_object_list(port, src=0, group=group)
    if store is None:
        store = dist.TCPStore("127.0.0.1", port[0], is_master=False, wait_for_workers=False)
    return Agreement(StopSignals(), group, store)


def settle_in_turn(rank: int, group: dist.ProcessGroup) -> list[Any]:
    """Nothing; a flag of the last rank; then a signal of rank 1."""
    agreement = agreement_of(rank, group)
    said: list[Any] = [agreement.settle(False, False), agreement.settle(rank == 2, False)]
    said.append(agreement.gather(10 * rank))
    if rank == 1:
        agreement.signals.hear(signal.SIGUSR1)
    try:
        agreement.settle(False)
    except StopRequested:
        received = agreement.signals.received
        said.append(None if received is None else received.name)
    return said


def work_together(rank: int, group: dist.ProcessGroup) -> tuple[int, bool, str]:
    """Rank 0 is told to stop in its third piece of work; each piece takes 50 ms, of 200."""
    agreement = agreement_of(rank, group)
    done, stopped = 0, False
    try:
        with agreement.together():
            for done in range(200):
                if rank == 0 and done == 3:
                    agreement.signals.hear(signal.SIGTERM)
                agreement.check()
                time.sleep(0.05)
    except StopRequested:
        stopped = True
    received = agreement.signals.received
    dist.barrier(group)  # the store ends with its process
    return done, stopped, received.name if received is not None else "none"


def fail_together(rank: int, group: dist.ProcessGroup) -> str:
    """Rank 1 fails in its own way; the others hear of it where they all meet."""
    agreement = agreement_of(rank, group)
    said = "nothing"
    try:
        with agreement.together():
            if rank == 1:
                raise OSError("no space left")
    except (OSError, PeerFailedError) as error:
        said = f"{type(error).__name__}: {error}"
    dist.barrier(group)
    return said


def test_a_failure_ends_all_and_is_told_by_its_own_process() -> None:
    peer = "PeerFailedError: another process failed; see its own message"
    assert run_ranks(3, fail_together) == [peer, "OSError: no space left", peer]


def test_checks_are_signs_of_life() -> None:
    signs: list[int] = []
    agreement = Agreement(StopSignals(), None, None, lambda: signs.append(1))
    for _ in range(3):
        agreement.check()
    assert len(signs) == 3


def test_all_hear_what_one_knows() -> None:
    answers = run_ranks(3, settle_in_turn)
    assert answers == [[(False, False), (True, False), [0, 10, 20], "SIGUSR1"]] * 3


def test_work_is_broken_off_by_all() -> None:
    """Long before its end: 200 pieces would take 10 s, the store is asked every half a second."""
    answers = run_ranks(2, work_together)
    assert [answer[1:] for answer in answers] == [(True, "SIGTERM")] * 2
    assert answers[0][0] == 3
    assert answers[1][0] < 100


def test_alone() -> None:
    agreement = Agreement(StopSignals(), None, None)
    assert agreement.settle(True, False) == (True, False)
    assert agreement.gather("x") == ["x"]
    agreement.check()
    with agreement.together():
        agreement.check()
    agreement.signals.hear(signal.SIGINT)
    with pytest.raises(StopRequested):
        agreement.settle()
    with pytest.raises(StopRequested):
        agreement.check()
    work = agreement.together()
    work.__enter__()
    with pytest.raises(StopRequested):
        work.__exit__(None, None, None)


def test_the_store_is_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        asked = 0

        def check(self, keys: list[str]) -> bool:
            assert keys == [room.STOP_KEY]
            self.asked += 1
            return False

    store = Store()
    agreement = Agreement(StopSignals(), None, store)  # type: ignore[arg-type]
    for _ in range(1000):
        agreement.check()
    assert store.asked <= 2
    monkeypatch.setattr(room, "POLL_SECONDS", 0.0)
    agreement.check()
    assert store.asked >= 2
