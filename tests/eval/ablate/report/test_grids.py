import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from eval.ablate.report.grids import large_picture, sheets, tiles_of
from eval.ablate.results import Outcome, StudyResults
from tests.eval.ablate.report.made_study import change, study, write_grid

AXES = {"schedule": ("cosine", "a", "b"), "resolution": ("64", "128")}


def with_grids(
    folder: Path,
    axes: dict[str, tuple[str, ...]] = AXES,
    *,
    noise: bool = False,
    side: int = 64,
) -> StudyResults:
    """A study whose every run has a grid; a at 64 is cosine at 64."""

    random = np.random.default_rng(0)

    def edit(one: Outcome) -> Outcome:
        assert one.result is not None
        name = write_grid(one.folder, side=side)
        if noise:
            pixels = random.integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(one.folder / name)
        return replace(one, result=replace(one.result, grid=name))

    same = {("a", "64"): ("cosine", "64")}
    return change(study(axes, lambda c, s: {}, seeds=(5, 3), folder=folder, same=same), edit)


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(data))


def test_cells_that_coincide_are_one_tile(tmp_path: Path) -> None:
    tiles = tiles_of(with_grids(tmp_path), 3)
    assert [tile.names for tile in tiles] == [
        ("schedule cosine, resolution 64", "schedule a, resolution 64"),
        ("schedule cosine, resolution 128",),
        ("schedule a, resolution 128",),
        ("schedule b, resolution 64",),
        ("schedule b, resolution 128",),
    ]
    assert {tile.path.parent.name for tile in tiles} == {
        f"{cell}-3" for cell in ("cosine-64", "cosine-128", "a-128", "b-64", "b-128")
    }


def test_a_sheet_for_each_panel(tmp_path: Path) -> None:
    first, second = sheets(with_grids(tmp_path))
    assert (first.where, first.names) == ("resolution 64", ("cosine = a", "b"))
    assert (second.where, second.names) == ("resolution 128", ("cosine", "a", "b"))


def test_a_sheet_shows_the_pictures(tmp_path: Path) -> None:
    results = with_grids(tmp_path)
    (sheet, _) = sheets(results)
    image = opened(sheet.png).convert("RGB")
    with Image.open(tiles_of(results, 5)[0].path) as grid:
        large = np.asarray(grid.resize((192, 192), Image.Resampling.NEAREST), dtype=float)
    shown = np.asarray(image, dtype=float)[18 : 18 + 192, :192]
    assert np.abs(shown - large).mean() < 12  # few colours


def test_sheets_stay_small_whatever_the_pictures(tmp_path: Path) -> None:
    axes = {"schedule": tuple("abcdefgh")}
    (sheet,) = sheets(with_grids(tmp_path, axes, noise=True, side=240))
    assert 50_000 < len(sheet.png) < 140_000
    assert opened(sheet.png).width > 600


def test_cells_without_a_picture(tmp_path: Path) -> None:
    def edit(one: Outcome) -> Outcome:
        if one.choices["schedule"] == "b":
            return replace(one, status="failed", result=None)
        if one.choices["schedule"] == "a":
            (one.folder / "grid.png").unlink(missing_ok=True)
        return one

    results = change(with_grids(tmp_path), edit)
    assert [sheet.names for sheet in sheets(results)] == [("cosine",)]
    assert sheets(change(results, lambda one: replace(one, result=None))) == []


def test_pictures_are_encoded_afresh(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "<script>")
    path = tmp_path / "grid.png"
    Image.new("RGB", (40, 40), "red").save(path, pnginfo=notes)
    path.write_bytes(path.read_bytes() + b"<script>")
    data = large_picture(path, 1)
    assert b"<script>" not in (data or b"<script>")
    image = opened(data)
    assert image.size == (400, 400)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("count", "side"), [(4, 400), (100, 240)])
def test_large_pictures_are_made_smaller(tmp_path: Path, count: int, side: int) -> None:
    Image.new("RGB", (1000, 500)).save(tmp_path / "grid.png")
    assert opened(large_picture(tmp_path / "grid.png", count)).size == (side, side // 2)


@pytest.mark.parametrize("kind", ["text", "huge", "bomb", "gif", "absent", "cut"])
def test_what_is_no_picture_is_left_out(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "grid.png"
    if kind == "text":
        path.write_text("hello")
    elif kind == "gif":
        Image.new("RGB", (4, 4)).save(path, format="GIF")
    elif kind == "huge":
        Image.new("1", (8000, 8000)).save(path)
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    elif kind == "cut":
        name = write_grid(tmp_path)
        path.write_bytes((tmp_path / name).read_bytes()[:200])
    assert large_picture(path, 1) is None
