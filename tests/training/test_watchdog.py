"""Who it is that all wait for: told of beats, of one process alone, and of real processes."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from simple_diffusion.training.heartbeats import Beat
from simple_diffusion.training.signals import EXIT_REQUEUE
from simple_diffusion.training.watchdog import Watchdog, _end, _several, find_behind
from tests.training import watched
from tests.training.watched import Group, start


def beat(rank: int, images_seen: int, phase: str, arrivals: int, *, ended: bool = False) -> Beat:
    return Beat(rank, 5, f"n{rank}", 100 + rank, phase, images_seen, arrivals, 9.0, ended)


class TestFindBehind:
    @pytest.mark.parametrize(
        ("beats", "expected"),
        [
            # fewest images
            ([beat(0, 16, "step", 0), beat(1, 8, "step", 9), beat(2, 16, "step", 0)], [1]),
            # one reads data, the others have arrived where all meet
            ([beat(0, 8, "agree", 2), beat(1, 8, "data", 1), beat(2, 8, "agree", 2)], [1]),
            # it may have begun more phases than those that wait for it
            ([beat(0, 8, "agree", 1), beat(1, 8, "evaluate", 30)], [1]),
            # all compute, and one has not come as far
            ([beat(0, 8, "step", 3), beat(1, 8, "step", 3), beat(2, 8, "data", 2)], [2]),
            # all wait for each other: the one that has begun fewer phases
            ([beat(0, 8, "agree", 4), beat(1, 8, "agree", 2)], [1]),
            # nothing tells them apart
            ([beat(0, 8, "step", 3), beat(1, 8, "step", 3)], [0, 1]),
            # several
            ([beat(0, 8, "step", 0), beat(1, 0, "data", 1), beat(2, 0, "data", 1)], [1, 2]),
        ],
    )
    def test_the_ones_that_others_wait_for(self, beats: list[Beat], expected: list[int]) -> None:
        assert [one.rank for one in find_behind(beats)] == expected
        assert sorted(one.rank for one in find_behind(beats[::-1])) == expected


class TestMessages:
    def test_a_process_has_a_rank_a_node_and_a_pid(self) -> None:
        gone = beat(3, 40, "step", 0)
        assert _end(3, gone) == "rank 3 (node n3, pid 103), last seen at image 40 in step"
        gone = beat(3, 40, "save", 0, ended=True)
        assert _end(3, gone) == "rank 3 (node n3, pid 103), ended by itself at image 40 in save"

    def test_one_that_never_spoke(self) -> None:
        assert _end(2, None) == "rank 2, of which nothing was ever heard"

    def test_a_thousand_are_not_listed(self) -> None:
        assert _several(["a"]) == "a"
        assert _several(["a, in data", "b"]) == "a, in data, and b"
        assert _several(list("abcd") + ["e"] * 996).endswith("c, and d, and 996 more")


class TestAlone:
    def make(self, stall_seconds: float) -> tuple[Watchdog, threading.Event, list[str]]:
        stalled, messages = threading.Event(), []

        def on_stall(message: str) -> None:
            messages.append(message)
            stalled.set()

        guard = Watchdog(
            rank=0,
            processes=1,
            store=None,
            stall_seconds=stall_seconds,
            on_stall=on_stall,
            period=0.02,
        )
        return guard, stalled, messages

    def test_a_stall_is_told_once_with_the_place(self, capfd: pytest.CaptureFixture[str]) -> None:
        guard, stalled, messages = self.make(0.2)
        with guard:
            guard.at("data", 4800)
            assert stalled.wait(30.0)
        (message,) = messages
        assert f"rank 0 (node {socket.gethostname()}, pid {os.getpid()})" in message
        assert "has made no progress for 0 s in data at image 4800" in message
        assert "it is the only process" in message
        assert "test_watchdog.py" in capfd.readouterr().err  # where its threads stand

    def test_progress_is_no_stall(self) -> None:
        """A hundred calls within far less than the limit each, together three times as long."""
        guard, stalled, _ = self.make(3.0)
        begun = time.monotonic()
        with guard:
            while time.monotonic() - begun < 4.5:
                guard.at("step", 8)
                time.sleep(0.02)
            assert not stalled.is_set()

    def test_signs_of_life_within_a_phase(self) -> None:
        """As in an evaluation that takes longer than the limit."""
        guard, stalled, _ = self.make(3.0)
        begun = time.monotonic()
        with guard:
            guard.at("evaluate", 8)
            while time.monotonic() - begun < 4.5:
                guard.alive()
                time.sleep(0.02)
            assert not stalled.is_set()

    @pytest.mark.parametrize("phase", ["start", "save", "final"])
    def test_long_phases_have_longer(self, phase: str) -> None:
        guard, stalled, messages = self.make(0.5)
        with guard:
            guard.at(phase, 8)
            assert not stalled.wait(1.5)
            assert stalled.wait(30.0)
        assert f"in {phase} at image 8" in messages[0]

    def test_nothing_is_told_before_and_after(self) -> None:
        """Importing and building the network may take long; so may what comes after training."""
        guard, stalled, _ = self.make(0.1)
        time.sleep(0.2)
        with guard:
            guard.at("step", 8)
        assert not stalled.wait(0.3)

    def test_nobody_is_lost(self) -> None:
        guard, _, _ = self.make(60.0)
        with guard:
            assert guard.lost(0.0) is None


SCENES = [("kill", 1), ("stop", 1), ("sleep", 1), ("raise", 1), ("slow", 1), ("stop", 0)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, int], Group]]:
    """Two processes for each scene; all scenes play at the same time, as they mostly wait."""
    stage = tmp_path_factory.mktemp("watched")
    groups = {(what, who): start(stage / f"{what}-{who}", what, who) for what, who in SCENES}
    yield groups
    for group in groups.values():
        group.kill()


def name_of(group: Group, rank: int) -> str:
    return f"rank {rank} (node {socket.gethostname()}, pid {group.processes[rank].pid})"


@pytest.mark.integration
class TestRealProcesses:
    """Of two, one misbehaves in its fourth step, after 24 images."""

    @pytest.mark.parametrize("culprit", [0, 1])
    def test_stopped(self, scenes: dict[tuple[str, int], Group], culprit: int) -> None:
        """Rank 0 keeps the store, which then does not answer."""
        group = scenes["stop", culprit]
        waiting = group.end(1 - culprit)
        assert waiting.code == EXIT_REQUEUE, waiting.output
        said = next(line for line in waiting.output.splitlines() if line.startswith("watchdog: "))
        assert said.startswith(f"watchdog: {name_of(group, 1 - culprit)} has made no progress")
        assert "in step at image 24; " in said
        assert f"all wait for {name_of(group, culprit)}, last seen at image " in said
        assert said.endswith("The same command goes on from the newest checkpoint")
        assert group.processes[culprit].is_alive()

    def test_killed(self, scenes: dict[tuple[str, int], Group]) -> None:
        group = scenes["kill", 1]
        assert group.end(1).code == -9
        left = group.end(0)
        assert left.code == watched.LOST, left.output
        assert f"LOST {name_of(group, 1)}, last seen at image " in left.output

    def test_waiting_for_data(self, scenes: dict[tuple[str, int], Group]) -> None:
        """It lives, and its own watchdog says the same as the other's, or as what that heard."""
        group = scenes["sleep", 1]
        place = f"{name_of(group, 1)}, in data at image 24 for"
        culprit, other = group.end(1), group.end(0)
        assert culprit.code == EXIT_REQUEUE, culprit.output
        assert f"all wait for {place}" in culprit.output
        assert other.code in (EXIT_REQUEUE, watched.LOST), other.output
        assert place in other.output

    def test_a_fault_of_its_own(self, scenes: dict[tuple[str, int], Group]) -> None:
        group = scenes["raise", 1]
        culprit, other = group.end(1), group.end(0)
        assert "ValueError: a fault of its own" in culprit.output
        assert "watchdog" not in culprit.output.splitlines()[-1]
        assert other.code == watched.LOST, other.output
        assert f"LOST {name_of(group, 1)}, ended by itself at image 24 in step" in other.output

    def test_slow_but_alive(self, scenes: dict[tuple[str, int], Group]) -> None:
        """It works for twice the time after which waiting is a stall; the other waits for it."""
        group = scenes["slow", 1]
        for rank in (0, 1):
            ended = group.end(rank)
            assert (ended.code, ended.output) == (0, "DONE\n")
