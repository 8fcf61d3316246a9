import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval.ablate.report import write_report
from eval.ablate.results import Outcome, StudyResults
from tests.eval.ablate.report.made_study import Choices, change, study, write_grid
from tests.eval.ablate.report.test_pages import Page

HOSTILE = "RuntimeError: <b>out</b> of | `memory` ![x](http://evil)"
AXES = {"schedule": ("cosine", "shifted_32", "linear"), "resolution": ("64", "128")}


def scores(choices: Choices, seed: int) -> dict[str, float]:
    gain = {"cosine": 0.0, "shifted_32": -0.02, "linear": 0.03}[choices["schedule"]]
    noise = 0.001 * math.sin(7 * seed + len(choices["resolution"]) + 100 * gain)
    return {"kid_lite0": 0.08 + gain + noise, "recall_lite0": 0.5 - gain + noise}


def busy_study(folder: Path) -> StudyResults:
    """Two axes and three seeds with all there is: curves, grids, failures, cells to come."""

    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        if one.choices == {"schedule": "linear", "resolution": "128"}:
            if one.seed == 0:
                return replace(one, status="failed", result=None, error=HOSTILE)
            return replace(one, status="not run", result=None)
        curve = tuple((n, one.result.scores) for n in (0, 3200, 6400))
        grid = write_grid(one.folder)
        return replace(one, result=replace(one.result, curve=curve, grid=grid))

    same = {("shifted_32", "64"): ("cosine", "64")}
    return change(study(AXES, scores, folder=folder, same=same), edit)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert write_report(busy_study(folder), folder) == folder / "report.html"
    return folder


def headings(markdown: str) -> list[str]:
    return re.findall(r"^## (.*)$", markdown, re.MULTILINE)


def rows(markdown: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    part = markdown.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    first = [line.strip("| ").split(" | ") for line in lines]
    ends = [i for i, cells in enumerate(first) if cells[0].startswith(":-")]
    return first[2 : ends[1] - 1] if len(ends) > 1 else first[2:]


def test_sections_come_in_the_order_a_reader_wants(busy: Path) -> None:
    expected = [
        "Question",
        "Verdict",
        "Figures",
        "Differences from the baseline",
        "Interaction",
        "Over training",
        "Loss at each noise level",
        "Schedules",
        "Samples",
        "Costs",
        "Cells without a result",
        "What the figures depend on",
    ]
    assert headings((busy / "report.md").read_text()) == expected
    page = (busy / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == expected


def test_the_pictures_of_the_markdown_are_there_and_small(busy: Path) -> None:
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (busy / "report.md").read_text())
    files = sorted((busy / "report_files").iterdir())
    assert sorted(links) == [f"report_files/{path.name}" for path in files]
    assert {path.name for path in files} >= {
        "differences.png",
        "curve-0.png",
        "loss.png",
        "loss-ratio.png",
        "schedules.png",
        "samples-0.png",
        "samples-1.png",
    }
    sizes = [path.stat().st_size for path in files]
    assert max(sizes) < 150_000
    assert sum(sizes) < 1_000_000
    for path in files:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width <= 1250


def test_the_page_stands_alone(busy: Path) -> None:
    source = (busy / "report.html").read_text()
    page = Page(source)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 3 * 4  # seeds x grids: two of the six cells coincide, one is not there
    assert all(one.startswith("data:image/png;base64,") for one in sources)
    assert "http" not in re.sub(
        r"base64,[^\"]*|http-equiv", "", source.replace(HOSTILE, "")
    ).replace("(http://evil)", "")
    ids = re.findall(r' id="([^"]*)"', source)
    assert len(ids) == len(set(ids))


def test_an_error_message_is_only_text(busy: Path) -> None:
    page = Page((busy / "report.html").read_text())
    (line,) = [text for text in page.text if HOSTILE in text]
    assert "cells/linear-128-0/log.txt" in line
    (line,) = [x for x in (busy / "report.md").read_text().splitlines() if "RuntimeError" in x]
    assert r"&lt;b&gt;out&lt;/b&gt; of \| \`memory\` \!\[x](http:&#47;&#47;evil)" in line


def test_no_path_of_the_machine_is_shown(busy: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (busy / name).read_text()
        assert str(busy) not in text
        assert "/somewhere" not in text
        assert "icons" in text  # the reference, of whose path the last part remains


def test_progress_and_pins_are_stated(busy: Path) -> None:
    text = (busy / "report.md").read_text()
    assert "3 of 18 cells without a result so far." in text
    assert "15 of 18 done, 1 failed, 2 not run; 15 different runs" in text
    for pin in ("| num | 256 |", "| steps | 16 |", f"| extractor.sha256 | {'0f' * 32} |"):
        assert pin in text
    assert "bicubic to 224, antialiased" in text


def test_table_of_figures(busy: Path) -> None:
    found = {tuple(row[:2]): row for row in rows((busy / "report.md").read_text(), "Figures")}
    assert list(found) == [(s, r) for s in AXES["schedule"] for r in AXES["resolution"]]
    row = found["linear", "64"]
    values = [scores({"schedule": "linear", "resolution": "64"}, s)["kid_lite0"] for s in range(3)]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    assert row[2] == f"{mean:.4g} ± {deviation:.2g}"
    assert row[3] == f"{0.98 * mean:.3g} / 0.001"
    assert row[6] == "3"
    assert found["linear", "128"][2:7] == ["–", "–", "–", "–", "failed"]
    bold = {cell: row[2].startswith("**") for cell, row in found.items()}
    assert [cell for cell, best in bold.items() if best] == [("shifted_32", "128")]


def test_table_of_differences(busy: Path) -> None:
    found = rows((busy / "report.md").read_text(), "Differences from the baseline")
    by = {(row[0], row[1], row[2]): row for row in found}
    row = by["schedule", "shifted_32 − cosine", "resolution 128"]
    differences = [
        scores({"schedule": "shifted_32", "resolution": "128"}, s)["kid_lite0"]
        - scores({"schedule": "cosine", "resolution": "128"}, s)["kid_lite0"]
        for s in range(3)
    ]
    assert row[3] == "**better**"
    assert row[4] == f"{sum(differences) / 3:.3g}"
    assert row[6] == f"[{min(differences):.3g}, {max(differences):.3g}]"
    assert by["schedule", "shifted_32 − cosine", "resolution 64"][3] == "same run"
    assert ("schedule", "linear − cosine", "resolution 128") not in by
    assert by["schedule", "linear − cosine", "resolution 64"][3] == "**worse**"


def test_costs_count_each_run_once(busy: Path) -> None:
    *_, total = rows((busy / "report.md").read_text(), "Costs")
    # five cells of three seeds are finished, of which two coincide: 12 runs of 2 + 0.5 minutes
    assert total == ["**all 12 runs**", "**76,800**", "", "**24**", "**6**", "", "**18 PFLOP**",
                     "**2.4 PFLOP**"]  # fmt: skip


def test_the_same_results_give_the_same_files(busy: Path) -> None:
    before = {path: path.read_bytes() for path in busy.rglob("report*") if path.is_file()}
    stale = busy / "report_files" / "of-an-earlier-report.png"
    stale.write_bytes(b"")
    write_report(busy_study(busy), busy)
    assert {path: path.read_bytes() for path in before} == before
    assert not stale.exists()
    assert not list(busy.rglob("*.part"))


def test_one_cell_with_one_seed(tmp_path: Path) -> None:
    results = study({}, lambda c, s: {"kid_lite0": 0.05}, seeds=(0,), folder=tmp_path)
    write_report(results, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "A single configuration: there is nothing to compare it with." in text
    assert "One seed: differences between runs are not known to be more than noise." in text
    assert rows(text, "Figures")[0][:3] == ["made", "0.05", "0.049 / 0.001"]
    assert "Differences from the baseline" not in headings(text)


def test_a_study_that_has_not_begun(tmp_path: Path) -> None:
    results = study(AXES, scores, folder=tmp_path)
    results = change(results, lambda one: replace(one, status="not run", result=None))
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert headings(text) == ["Question", "Verdict", "Cells without a result"]
    assert "18 not run:" in text
    assert list((tmp_path / "report_files").iterdir()) == []


def test_generations_have_a_line_for_each_loop(tmp_path: Path) -> None:
    axes = {"loop": ("synthetic", "fresh"), "generation": ("0", "1", "2")}

    def decay(choices: Choices, seed: int) -> dict[str, float]:
        rate = {"synthetic": 0.2, "fresh": 0.01}[choices["loop"]]
        value = 0.9 - rate * int(choices["generation"])
        return {"precision_lite0": value, "recall_lite0": value**2}

    same = {("fresh", "0"): ("synthetic", "0")}
    results = study(axes, decay, seeds=(0,), folder=tmp_path, same=same)
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "report_files/generations-0.png" in text
    assert "Differences of the single pairs: fresh +0.19 to +0.38." in text
    assert "By construction the same run as the baseline: fresh (generation 0)." in text
    assert "differences.png" not in text  # no intervals to draw
    page = (tmp_path / "report.html").read_text()
    picture = page[page.index('aria-label="Figures by generation"') :]
    assert all(word in picture[:60_000] for word in ("precision_lite0", "recall_lite0", "fresh"))
