"""The end report: counts of parts add up, and kinds of reasons are told apart."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from data_pipelines.building.report import EXAMPLES, BuildReport, Tally, kind_of
from data_pipelines.index import IndexReport
from data_pipelines.manifest import Manifest
from data_pipelines.sample import Rejected, Sample
from data_pipelines.shards import SampleError
from data_pipelines.verify import VerifyReport


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


def test_any_name_can_be_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally()
    tally.add(Rejected(os.fsdecode(b"caf\xe9/\xff.png") + "\u732b", "empty"))
    manifest = Manifest((), (), (), "test", "CC0", {})
    reports = [
        BuildReport(Path(os.fsdecode(b"\xff")), manifest, None, tally, reused=False),
        IndexReport(tmp_path, manifest, (SampleError("a.tar", "\udcff\u732b", "bad"),)),
        VerifyReport(tmp_path, 0, ("a.tar: '\udcff\u732b' is damaged",)),
    ]
    for encoding, cat in (("utf-8", "\u732b"), ("ascii", r"\u732b"), ("latin-1", r"\u732b")):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        for report in reports:
            text = str(report)
            out.write(text)  # as print does
            assert r"\udcff" in text
            assert cat in text
