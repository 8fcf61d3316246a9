"""What happened to a run: as it was written, as anyone might have written it, and on the page."""

import re
from pathlib import Path
from typing import Any

import pytest

from eval.report import write_report
from eval.run_events import KEPT, Event, Events
from eval.run_log import read_run
from tests.eval.run_folder import HOSTILE, run_line, train_line, write_metrics


def stop(images: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "stop", "images_seen": images, "signal": "SIGUSR1", "seconds": 1.26} | fields


def skipped(images: int, *keys: str) -> dict[str, Any]:
    samples = [{"position": n, "key": key} for n, key in enumerate(keys)]
    return {"kind": "skipped", "step": images // 8, "images_seen": images, "samples": samples}


def spike(images: int, **fields: Any) -> dict[str, Any]:
    line = {"kind": "spike", "step": 9, "images_seen": images, "grad_norm": 12.0, "median": 0.5}
    return line | fields


def checkpoint(images: int, seconds: float, stall: float, size: int = 10) -> dict[str, Any]:
    line = {"kind": "checkpoint", "images_seen": images, "seconds": seconds}
    return line | {"stall_seconds": stall, "bytes": size}


def events_of(folder: Path, *lines: dict[str, Any]) -> Events:
    write_metrics(folder, list(lines))
    return read_run(folder).events


def test_in_words(tmp_path: Path) -> None:
    events = events_of(
        tmp_path,
        run_line(processes=64, device="H100"),
        skipped(80, "a-1", "b-2"),
        spike(160),
        stop(240),
        run_line(images_seen=240, processes=32, device="H200"),
    )
    assert list(events) == [
        Event(80, "step 10 skipped", "not finite: a-1, b-2"),
        Event(160, "gradient spike", "norm 12, 24 times the recent median"),
        Event(240, "stopped by SIGUSR1", "saved 1.3 s after it"),
        Event(240, "went on otherwise", "processes 64 → 32, device H100 → H200"),
    ]
    assert dict(events.counts) == {"skipped": 1, "spike": 1, "stop": 1, "run": 1}
    assert events.left_out == 0


def test_the_same_machines_again_are_no_event(tmp_path: Path) -> None:
    assert not list(events_of(tmp_path, run_line(), run_line(images_seen=80, parameters=5)))


def test_a_step_whose_gradients_alone_were_not_finite(tmp_path: Path) -> None:
    (event,) = events_of(tmp_path, skipped(8))
    assert event.details == "gradients not finite, losses were"


def test_many_samples_are_counted(tmp_path: Path) -> None:
    (event,) = events_of(tmp_path, skipped(8, *(f"k{n}" for n in range(1000))))
    assert event.details.endswith("k6, k7, 992 more")


def test_saves_are_put_together(tmp_path: Path) -> None:
    lines = (checkpoint(8, 2.0, 0.5), checkpoint(16, 9.0, 0.1), checkpoint(24, 3.0, 0.2, size=99))
    saves = events_of(tmp_path, *lines).saves
    assert (saves.count, saves.longest, saves.stall, saves.bytes) == (3, 9.0, 0.5, 99)


def test_of_many_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    events = events_of(tmp_path, *(stop(n) for n in range(1000)))
    seen = [event.images_seen for event in events]
    assert seen == [*range(KEPT), *range(1000 - KEPT, 1000)]
    assert (events.counts["stop"], events.left_out) == (1000, 1000 - 2 * KEPT)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (stop(8, signal=None, seconds="x"), ("stopped by a signal", "")),
        (stop(8, seconds=-1), ("stopped by SIGUSR1", "")),
        (spike(8, grad_norm=None, median=0), ("gradient spike", "norm nan")),
        (skipped(8) | {"samples": 3, "step": "x"}, ("a step skipped", "gradients not finite")),
        (
            skipped(8) | {"samples": [{}, 1]},
            ("step 1 skipped", "not finite: position None, 1 more"),
        ),
        (skipped(8, "x" * 10_000), ("step 1 skipped", "not finite: " + 80 * "x")),
    ],
)
def test_values_of_another_kind(
    tmp_path: Path, line: dict[str, Any], expected: tuple[str, str]
) -> None:
    (event,) = events_of(tmp_path, line)
    assert event.what == expected[0]
    assert event.details.startswith(expected[1])
    assert len(event.details) < 200


def test_broken_saves(tmp_path: Path) -> None:
    line = checkpoint(8, 2.0, 0.5) | {"seconds": None, "stall_seconds": True, "bytes": -1}
    saves = events_of(tmp_path, line).saves
    assert (saves.count, saves.longest, saves.stall, saves.bytes) == (1, 0.0, 0.0, None)


class TestThePage:
    def written(self, folder: Path, *lines: dict[str, Any]) -> str:
        write_metrics(folder, [run_line(), train_line(8), *lines])
        return write_report(folder).read_text()

    def test_counts_saves_and_rows(self, tmp_path: Path) -> None:
        lines = (checkpoint(8, 2.0, 0.5, 2_500_000), skipped(16, "k"), skipped(24, "l"), stop(24))
        page = self.written(tmp_path, *lines)
        assert "1 preemption, 2 skipped steps." in page
        assert (
            "1 checkpoint was written of 2.5 MB: complete after at most 2 s, for at most 0.5 s"
            in page
        )
        rows = re.findall("<td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", page)
        assert [row[1] for row in rows] == [
            "step 2 skipped",
            "step 3 skipped",
            "stopped by SIGUSR1",
        ]

    def test_a_quiet_run_has_no_such_section(self, tmp_path: Path) -> None:
        assert "What happened" not in self.written(tmp_path)
        assert (
            "<th" not in self.written(tmp_path, checkpoint(8, 2.0, 0.5)).split("What happened")[1]
        )

    def test_the_gap_is_told_where_it_is(self, tmp_path: Path) -> None:
        page = self.written(tmp_path, *(stop(n) for n in range(100)))
        rows = re.findall("<td>([^<]*)</td><td>([^<]*)</td><td>[^<]*</td>", page)
        assert rows[KEPT - 1 : KEPT + 2] == [
            (str(KEPT - 1), "stopped by SIGUSR1"),
            ("…", f"{100 - 2 * KEPT} more"),
            (str(100 - KEPT), "stopped by SIGUSR1"),
        ]

    def test_hostile_text_stays_text(self, tmp_path: Path) -> None:
        lines = (skipped(8, HOSTILE), stop(8, signal=HOSTILE), run_line(device=HOSTILE))
        page = self.written(tmp_path, *lines)
        assert "<script" not in page
        assert "<img" not in page
        assert page.count("&lt;script&gt;alert(1)") >= 4
