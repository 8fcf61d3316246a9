"""Scans: remembered part by part, the same for any number of workers."""

import os
from pathlib import Path

import pytest

from data_pipelines.sample import Rejected
from data_pipelines.sources.base import Item
from data_pipelines.sources.scan import (
    PART,
    Duplicates,
    cut,
    scan_all,
    scan_part,
    without_duplicates,
)


def square(number: int) -> int:
    return number * number


def die(number: int) -> int:
    if number:
        os._exit(9)
    return number


def test_what_is_remembered_is_not_looked_at_again(tmp_path: Path) -> None:
    looks: list[int] = []

    def look(part: int) -> list[int]:
        looks.append(part)
        return [part, part + 1]

    for _ in range(2):
        assert scan_part(tmp_path, 3, look, 7) == [7, 8]
    assert looks == [7]
    assert [path.name for path in tmp_path.iterdir()] == ["00000003.json"]
    (tmp_path / "00000003.json").write_text("[7,")  # cut short
    assert scan_part(tmp_path, 3, look, 7) == [7, 8]
    assert scan_part(None, 3, look, 7) == [7, 8]
    assert looks == [7, 7, 7]


def test_workers_that_finish_and_workers_that_are_killed(tmp_path: Path) -> None:
    options = {"progress": False, "title": "numbers"}
    scan_all(tmp_path / "a", square, range(5), workers=2, **options)  # type: ignore[arg-type]
    assert [scan_part(tmp_path / "a", n, die, n) for n in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(ValueError, match=r"numbers, part \d: the worker that made it ended"):
        scan_all(tmp_path / "b", die, range(3), workers=2, **options)  # type: ignore[arg-type]


def test_a_listing_is_cut_by_its_items() -> None:
    listing: list[Item | Rejected] = [Rejected("first", "no")]
    listing += [Item(str(number), number) for number in range(2 * PART + 1)]
    listing.insert(5, Rejected("another", "no"))
    parts = list(cut(listing))
    assert [entry for entries, _ in parts for entry in entries] == listing
    assert [len(items) for _, items in parts] == [PART, PART, 1]
    assert all(items == [e for e in entries if isinstance(e, Item)] for entries, items in parts)
    assert list(cut([])) == [([], [])]


def test_duplicates_across_parts() -> None:
    digests = {number: f"{number % (PART + 1):064x}" for number in range(PART + 3)}
    listing = [Item(str(number), number) for number in digests]

    def look(items: list[Item]) -> list[str | None]:
        return [None if item.place == 5 else digests[int(str(item.place))] for item in items]

    entries = list(without_duplicates(listing, look, None, lambda item: f"item {item.place}"))
    assert entries[: PART + 1] == listing[: PART + 1]
    assert entries[PART + 1 :] == [
        Rejected(f"item {PART + 1}", "duplicate: the same bytes as item 0"),
        Rejected(f"item {PART + 2}", "duplicate: the same bytes as item 1"),
    ]


def test_what_cannot_be_read_is_no_duplicate() -> None:
    seen = Duplicates()
    assert [seen.refuse(None, name) for name in ("a", "b")] == [None, None]
    again = "duplicate: the same bytes as a"
    assert [seen.refuse("00", name) for name in "abcd"] == [None, again, again, again]
