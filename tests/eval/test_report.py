import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from eval.report import plot_losses, write_report
from tests.eval.run_folder import (
    AFTER,
    BEFORE,
    HOSTILE,
    LOGSNR,
    WIENER,
    run_line,
    train_line,
    validation_line,
    write_metrics,
    write_picture,
)


class Page(HTMLParser):
    """Tags with their attributes, rows of cells, and the text between tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag != "td"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_table_holds_the_numbers_of_the_files(run: Path) -> None:
    page = Page(write_report(run))
    rows = [row for row in page.rows if len(row) == 5]
    assert len(rows) == len(LOGSNR)
    for row, expected in zip(rows, zip(LOGSNR, BEFORE, AFTER, WIENER, strict=True), strict=True):
        assert [float(cell) for cell in row[:4]] == pytest.approx(expected, rel=1e-3)
        assert float(row[4]) == pytest.approx(expected[2] / expected[3], rel=1e-3)
    ratios = re.findall(r'<tr class="(better|worse)">', page.source)
    assert ratios == ["better", "worse", "better"]


def test_header_states_the_facts(run: Path) -> None:
    text = Page(write_report(run)).text
    facts = ("first-light", "3,900 / 8,000", "1,234,567", "1 min 01 s", "64", "3.0%", "1.5")
    for fact in (*facts, "cpu · 1 process, 2 threads each · precision fp32"):
        assert fact in text
    assert "corrupt" not in text


def test_header_before_the_first_train_line(tmp_path: Path) -> None:
    write_metrics(tmp_path, [run_line(processes=16, threads=1, device="")])
    text = Page(write_report(tmp_path)).text
    assert "0 / 8,000" in text
    assert "16 processes, 1 thread each" in text


def test_replaced_samples_are_told(tmp_path: Path) -> None:
    write_metrics(tmp_path, [train_line(10, replaced=5), train_line(20, replaced=1234)])
    assert "1,234 corrupt samples of the data were replaced" in Page(write_report(tmp_path)).text
    write_metrics(tmp_path, [train_line(10, replaced=0)])
    assert "corrupt" not in Page(write_report(tmp_path)).text


def test_everything_is_in_the_page_and_nothing_comes_from_outside(run: Path) -> None:
    page = Page(write_report(run))
    assert page.count("script") == page.count("link") == page.count("iframe") == 0
    assert not re.search(
        r"https?:|//[a-z]|@import|url\((?!#)", page.source.replace("base64,//", "")
    )
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(sources) == 4
    assert all(s is not None and s.startswith("data:image/png;base64,") for s in sources)
    assert page.count("svg") == 8
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name == "href" and value is not None:
                assert value.removeprefix("#") in ids
    assert all(name in ids for name in re.findall(r"url\(#([^)]*)\)", page.source))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / "a<b>&c"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"name: {HOSTILE}</pre></details>")
    lines = [run_line(device=HOSTILE, precision=HOSTILE)]
    lines += [validation_line(n, AFTER, weights=HOSTILE) for n in (0, 10)]
    lines += [validation_line(10, BEFORE, weights=name) for name in ("_plain", "$\\frac$")]
    lines += [train_line(n, **{f"loss/{HOSTILE}": 0.5, "note": HOSTILE}) for n in (10, 20)]
    write_metrics(folder, lines)
    page = Page(write_report(folder))
    assert page.count("script") == page.count("img") == 0
    assert page.count("pre") == page.count("details") == 1
    assert "<b>" not in page.source
    assert page.text.count(HOSTILE) >= 6  # device, precision, configuration, note, weights, terms
    assert plot_losses(folder).stat().st_size > 1000


def test_only_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    page = Page(write_report(tmp_path))
    assert "seed: 0" in page.text
    assert page.count("svg") == page.count("img") == page.count("table") == 0
    assert plot_losses(tmp_path).is_file()
    assert "could not be read" not in page.text


def test_a_run_in_progress(run: Path) -> None:
    (run / "wiener.json").unlink()
    (run / "samples" / "final.png").write_bytes(b"\x89PNG\r\n\x1a\n half a picture")
    write_metrics(run, [train_line(10), validation_line(10, AFTER)], tail='{"kind": "train", "st')
    page = Page(write_report(run))
    assert "Final samples" not in page.text
    assert "could not be read" not in page.text
    rows = [row for row in page.rows if len(row) == 2 and row[0] != "term"]
    assert [[float(cell) for cell in row] for row in rows] == [
        pytest.approx(pair, rel=1e-3) for pair in zip(LOGSNR, AFTER, strict=True)
    ]
    assert "Wiener" not in page.text
    assert "eps-MSE, first" not in page.text


def test_unreadable_lines_are_counted_and_the_rest_is_shown(run: Path) -> None:
    bad = [
        "not json",
        "[" * 100_000,
        '"a string"',
        '{"kind": "train", "loss": 1}',
        '{"kind": "validation", "images_seen": 5, "logsnr": [1, 2], "eps_mse": [1]}',
        '{"kind": "validation", "images_seen": 5, "logsnr": "x", "eps_mse": 3}',
        '"' + "x" * 3_000_000 + '"',
    ]
    good = [json.dumps(train_line(n)) for n in (10, 777)]
    odd = json.dumps(train_line(20, loss=math.nan, lr="fast", grad_norm=None, data_wait=10**400))
    (run / "metrics.jsonl").write_text("\n".join([good[0], *bad, odd, good[1]]) + "\n")
    page = Page(write_report(run))
    assert f"{len(bad)} lines of metrics.jsonl could not be read" in page.text
    assert "777" in page.text


def test_the_best_weights_are_the_ones_shown(tmp_path: Path) -> None:
    lines = []
    for images, scale in ((0, 3.0), (50, 1.0)):
        lines.append(validation_line(images, [2 * scale * e for e in AFTER], "raw"))
        lines.append(validation_line(images, [scale * e for e in AFTER], "ema_0.10"))
    write_metrics(tmp_path, lines)
    rows = Page(write_report(tmp_path)).rows
    last = [float(row[2]) for row in rows if len(row) == 3]
    assert last == pytest.approx(AFTER, rel=1e-3)
    assert [row[0] for row in rows if len(row) == 4] == ["ema_0.10", "raw"]


def test_the_untrained_network_is_what_the_last_weights_are_compared_with(tmp_path: Path) -> None:
    lines = [validation_line(0, BEFORE, "raw")]
    lines += [validation_line(n, [2 * e for e in AFTER], "ema_0.05") for n in (20, 50)]
    write_metrics(tmp_path, lines)
    page = Page(write_report(tmp_path))
    rows = [[float(cell) for cell in row] for row in page.rows if len(row) == 3]
    assert [row[1] for row in rows] == pytest.approx(BEFORE, rel=1e-3)
    assert [row[2] for row in rows] == pytest.approx([2 * e for e in AFTER], rel=1e-3)
    assert "ema_0.05 after 50 images (first: after 0)" in page.text


def test_grids_are_thinned_and_ends_kept(tmp_path: Path) -> None:
    for i in range(40):
        write_picture(tmp_path / "samples" / f"{i * 1000:09d}.png", (i, 0, 0))
    write_picture(tmp_path / "samples" / "other.png", (0, 0, 0))
    page = Page(write_report(tmp_path))
    assert page.count("img") == 12
    assert "39,000 images seen" in page.text
    assert ">0 images seen" in page.source


def test_a_picture_of_absurd_size_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    Image.new("1", (30_000, 3_000)).save(tmp_path / "samples" / "final.png")
    assert Page(write_report(tmp_path)).count("img") == 0


def test_plot_of_losses_is_a_picture(run: Path) -> None:
    path = plot_losses(run)
    assert path == run / "losses.png"
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def test_nothing_half_written_stays_behind(run: Path) -> None:
    write_report(run)
    before = sorted(path.name for path in run.iterdir())
    first = (run / "report.html").read_bytes()
    write_report(run)
    assert sorted(path.name for path in run.iterdir()) == before
    assert (run / "report.html").read_bytes() == first


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    for function in (write_report, plot_losses):
        with pytest.raises(ValueError, match="no such run folder"):
            function(tmp_path / "absent")
