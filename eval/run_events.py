"""What happened to a run besides training: preemptions, skipped steps, spikes, moves, saves.

Read from lines of `metrics.jsonl` that nobody vouches for: texts are cut, and of many events only
the first and the last are kept.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from eval.untrusted import count_of, number_of, text_of

KINDS = ("stop", "skipped", "spike", "run", "checkpoint")  # of lines that are taken
KEPT = 30  # events from the beginning, and as many from the end
_MOST_SAMPLES = 8  # of a skipped step, by name
# Facts of a run's first line that may change when it goes on.
_MACHINES = ("processes", "parallel", "device", "threads", "precision", "total_images")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        images_seen: when.
        what: in a few words.
        details: the figures, or names of samples; plain text.
    """

    images_seen: int
    what: str
    details: str


@dataclass
class Saves:
    """Checkpoints that were written.

    Attributes:
        count: how many.
        longest: seconds that the slowest took until it was complete.
        stall: the longest time, in seconds, for which one held up training.
        bytes: of the newest.
    """

    count: int = 0
    longest: float = 0.0
    stall: float = 0.0
    bytes: int | None = None


@dataclass
class Events:
    """The events of a run, in the order of the file.

    Attributes:
        counts: how many there were of each kind of `KINDS`, machines changed under ``run``.
        saves: its checkpoints, which are too many to be listed.
    """

    counts: Counter[str] = field(default_factory=Counter)
    saves: Saves = field(default_factory=Saves)
    _first: list[Event] = field(default_factory=list)
    _last: deque[Event] = field(default_factory=lambda: deque(maxlen=KEPT))
    _machine: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Event]:
        """Those that were kept."""
        yield from self._first
        yield from self._last

    @property
    def left_out(self) -> int:
        """How many between the first and the last were not kept."""
        return sum(self.counts.values()) - len(self._first) - len(self._last)

    def read(self, images_seen: int, record: Mapping[str, Any]) -> None:
        """Take in a line whose ``kind`` is one of `KINDS`."""
        kind = record["kind"]
        if kind == "checkpoint":
            self._save(record)
            return
        if kind == "run":
            before, self._machine = self._machine, record
            event = None if before is None else _moved(images_seen, before, record)
        else:
            event = {"stop": _stop, "skipped": _skipped, "spike": _spike}[kind](images_seen, record)
        if event is None:
            return
        self.counts[kind] += 1
        if len(self._first) < KEPT:
            self._first.append(event)
        else:
            self._last.append(event)

    def _save(self, record: Mapping[str, Any]) -> None:
        saves = self.saves
        saves.count += 1
        saves.bytes = count_of(record, "bytes")
        # max(a, nan) is a
        saves.longest = max(saves.longest, number_of(record.get("seconds")))
        saves.stall = max(saves.stall, number_of(record.get("stall_seconds")))


def _stop(images_seen: int, record: Mapping[str, Any]) -> Event:
    seconds = number_of(record.get("seconds"))
    return Event(
        images_seen,
        f"stopped by {text_of(record, 'signal') or 'a signal'}",
        f"saved {seconds:.1f} s after it" if seconds >= 0 else "",
    )


def _skipped(images_seen: int, record: Mapping[str, Any]) -> Event:
    samples = record.get("samples")
    samples = samples if isinstance(samples, list) else []
    names = [
        text_of(one, "key") or f"position {count_of(one, 'position')}"
        for one in samples[:_MOST_SAMPLES]
        if isinstance(one, dict)
    ]
    more = len(samples) - len(names)
    names += [f"{more:,} more"] if more > 0 else []
    step = count_of(record, "step")
    what = "a step skipped" if step is None else f"step {step:,} skipped"
    return Event(
        images_seen,
        what,
        f"not finite: {', '.join(names)}" if names else "gradients not finite, losses were",
    )


def _spike(images_seen: int, record: Mapping[str, Any]) -> Event:
    norm, usual = (number_of(record.get(key)) for key in ("grad_norm", "median"))
    times = f", {norm / usual:.3g} times the recent median" if usual > 0 else ""
    return Event(images_seen, "gradient spike", f"norm {norm:.3g}{times}")


def _moved(images_seen: int, before: Mapping[str, Any], record: Mapping[str, Any]) -> Event | None:
    """What is different; None if nothing that is shown is."""

    def said(line: Mapping[str, Any], key: str) -> str:
        number = count_of(line, key)
        return f"{number:,}" if number is not None else text_of(line, key) or "–"

    changes = [
        f"{key.replace('_', ' ')} {said(before, key)} → {said(record, key)}"
        for key in _MACHINES
        if said(before, key) != said(record, key)
    ]
    return Event(images_seen, "went on otherwise", ", ".join(changes)) if changes else None
