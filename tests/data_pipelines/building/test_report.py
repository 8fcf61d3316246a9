"""The end report: counts of parts add up, and kinds of reasons are told apart."""

import json

import pytest

from data_pipelines.building.report import EXAMPLES, Tally, kind_of
from data_pipelines.sample import Rejected, Sample


def sample(width: int, height: int, class_: str | None = None) -> Sample:
    return Sample("k", b"12345", "png", width, height, class_)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("too small: 40 x 30", "too small"),
        ("damaged JPEG (Premature end: byte 7)", "damaged JPEG"),
        ("the file is empty", "the file is empty"),
        ("", ""),
    ],
)
def test_kinds(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


def test_tables_against_a_count_by_hand() -> None:
    tally = Tally()
    sizes = [(63, 64), (64, 64), (127, 128), (512, 256), (511, 256), (300, 400), (299, 400)]
    sizes += [(4096, 2048), (100, 201)]
    for width, height in sizes:
        tally.add(sample(width, height, "a" if width > 64 else None))
    assert tally.samples == 9
    assert tally.image_bytes == 45
    assert tally.unlabelled == 2
    _, sides, shapes = tally.lines()
    assert sides == (
        "  short side: up to 63 px 1 (11.1%), 64-127 px 3 (33.3%), 256-511 px 4 (44.4%), "
        "2048 px up 1 (11.1%)"
    )
    assert shapes == (
        "  width to height: taller than 1:2 1 (11.1%), 1:2 to 3:4 1 (11.1%), "
        "about square 4 (44.4%), 4:3 to 2:1 1 (11.1%), 2:1 and wider 2 (22.2%)"
    )


def test_parts_add_up() -> None:
    items = [sample(8 * n, 8) for n in range(1, 40)]
    items += [Rejected(f"file {n}", f"kind {n % 3}: {n}") for n in range(90)]  # type: ignore[list-item]
    whole = Tally()
    for item in items:
        whole.add(item)
    total = Tally()
    for start in range(0, len(items), 7):
        part = Tally()
        for item in items[start : start + 7]:
            part.add(item)
        total.merge(Tally.from_document(json.loads(json.dumps(part.document()))))
    assert total == whole
    assert whole.rejected == {"kind 0": 30, "kind 1": 30, "kind 2": 30}
    assert [one.name for one in whole.examples["kind 1"]] == [
        f"file {3 * n + 1}" for n in range(EXAMPLES)
    ]


def test_no_more_than_so_many_kinds() -> None:
    tally = Tally()
    for n in range(1000):
        tally.add(Rejected(f"file {n}", f"reason {n}"))
    assert len(tally.rejected) == 101
    assert tally.rejected.total() == 1000
    assert sum(map(len, tally.examples.values())) == 100 + EXAMPLES
    assert len(tally.lines()) < 120
