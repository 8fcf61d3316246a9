"""The cells' sample grids side by side: large for the page, one small labelled sheet for Markdown.

Pictures come from the cells' folders and are not trusted: they are decoded with a limit on their
size, and encoded afresh.
"""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from eval.ablate.report.comparisons import rows_of, said
from eval.ablate.report.drawing import label
from eval.ablate.report.layout import layout
from eval.ablate.results import Outcome, StudyResults

_MAX_PIXELS = 2**25  # of a picture that is read
_LARGE, _MEDIUM = 400, 240  # sides in the page: of few pictures, of many
_FEW = 24
_SHEET_WIDTH = 960
_TILE, _LEAST_TILE = 232, 48  # sides on a sheet: the first that is small enough
_MAX_SHEET = 140_000  # bytes
_ALL_SHEETS = 500_000
_LABEL = 18  # pixels below a tile
_GAP = 8
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)


@dataclass(frozen=True)
class Tile:
    """The sample grid of one run, and the names of the cells that it is of."""

    names: tuple[str, ...]
    folder: Path
    path: Path


@dataclass(frozen=True)
class Sheet:
    """Tiles of one seed and one level of the other axes in a small PNG."""

    where: str
    names: tuple[str, ...]
    png: bytes


def tiles_of(results: StudyResults, seed: int) -> list[Tile]:
    """The grids of all cells with a seed; cells that coincide have one, under all their names."""
    found: dict[Path, Tile] = {}
    for row in rows_of(results):
        name = said(row.choices, results.axes) or results.name
        for outcome in row.outcomes:
            if outcome.seed == seed and (path := _path(outcome)) is not None:
                known = found.get(path)
                names = (*known.names, name) if known else (name,)
                found[path] = Tile(names, outcome.folder, path)
    return list(found.values())


def large_picture(path: Path, count: int) -> bytes | None:
    """A grid as a PNG for the page, smaller where there are many; None if it cannot be read."""
    image = _read(path)
    if image is None:
        return None
    return _png(_fitted(image, _LARGE if count <= _FEW else _MEDIUM))


def sheets(results: StudyResults) -> list[Sheet]:
    """The first seed's grids, a sheet for each panel of the study's layout."""
    plan = layout(results)
    found = []
    limit = min(_MAX_SHEET, _ALL_SHEETS // max(1, len(plan.panels)))
    for where, rows in plan.panels.items():
        named: dict[Path, list[str]] = {}
        for value, row in rows.items():
            for outcome in row.outcomes:
                if outcome.seed == _first(results) and (path := _path(outcome)) is not None:
                    named.setdefault(path, []).append(value)
        pictures = [(names, _read(path)) for path, names in named.items()]
        known = [(" = ".join(names), image) for names, image in pictures if image is not None]
        if known:
            names = tuple(name for name, _ in known)
            found.append(Sheet(where, names, _sheet(known, limit)))
    return found


def _first(results: StudyResults) -> int:
    """The first seed that has a picture."""
    finished = {one.seed for one in results.outcomes if _path(one) is not None}
    return next((seed for seed in results.seeds if seed in finished), results.seeds[0])


def _path(outcome: Outcome) -> Path | None:
    result = outcome.result
    if result is None or result.grid is None:
        return None
    path = outcome.folder / Path(result.grid).name
    return path if path.is_file() else None


def _read(path: Path) -> Image.Image | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                if image.width * image.height > _MAX_PIXELS:
                    return None
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, *_BOMBS):
        return None


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """At most so wide and high; small pictures are enlarged by whole factors, for sharp pixels."""
    factor = side // max(image.size)
    if factor > 1:
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _sheet(pictures: Sequence[tuple[str, Image.Image]], limit: int) -> bytes:
    """Labelled tiles in rows: about the largest that fit into the limit."""
    side = _TILE
    while True:
        data = _png(_tiled(pictures, side).quantize(128, dither=Image.Dither.NONE))
        if len(data) <= limit or side <= _LEAST_TILE:
            return data
        shrink = min(0.85, 0.95 * math.sqrt(limit / len(data)))
        side = max(_LEAST_TILE, int(side * shrink))


def _tiled(pictures: Sequence[tuple[str, Image.Image]], side: int) -> Image.Image:
    columns = min(len(pictures), _SHEET_WIDTH // (side + _GAP))
    rows = math.ceil(len(pictures) / columns)
    step_x, step_y = side + _GAP, side + _LABEL + _GAP
    sheet = Image.new("RGB", (columns * step_x - _GAP, rows * step_y - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for i, (name, image) in enumerate(pictures):
        x, y = i % columns * step_x, i // columns * step_y
        sheet.paste(_fitted(image, side), (x, y + _LABEL))
        draw.text((x, y + 1), label(name, side // 7), fill="#1d1f22", font=font)
    return sheet


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
