"""The part of a run's page that says what happened to it besides training."""

from html import escape

from eval.page_parts import table
from eval.run_events import Saves
from eval.run_log import RunLog

# Kind of event -> one of it, several of it.
_NAMES = {
    "stop": ("preemption", "preemptions"),
    "skipped": ("skipped step", "skipped steps"),
    "spike": ("gradient spike", "gradient spikes"),
    "run": ("change of machines", "changes of machines"),
}


def what_happened(log: RunLog) -> str:
    """A section with the saves in a line, and a table of the other events; empty without any."""
    events = log.events
    counts = [
        f"{events.counts[kind]:,} {one if events.counts[kind] == 1 else many}"
        for kind, (one, many) in _NAMES.items()
        if events.counts[kind]
    ]
    notes = [f"{', '.join(counts)}." if counts else "", _saves(events.saves)]
    if not any(notes):
        return ""
    rows = [[f"{e.images_seen:,}", escape(e.what), escape(e.details)] for e in events]
    if events.left_out:
        # The first ones are full when any is left out, so the gap comes after them.
        gap = ["…", f"{events.left_out:,} more", ""]
        rows.insert(len(rows) // 2, gap)
    shown = table(("images seen", "what", "details"), rows, texts=True) if rows else ""
    note = " ".join(filter(None, notes))
    return f'<section><h2>What happened</h2><p class="note">{note}</p>{shown}</section>'


def _saves(saves: Saves) -> str:
    if not saves.count:
        return ""
    size = "" if saves.bytes is None else f" of {saves.bytes / 1e6:,.3g} MB"
    number = "1 checkpoint was" if saves.count == 1 else f"{saves.count:,} checkpoints were"
    return (
        f"{number} written{size}: complete after at most {saves.longest:.3g} s, for at most "
        f"{saves.stall:.2g} s of which training stood still."
    )
