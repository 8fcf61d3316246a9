import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from eval.ablate.report.drawing import (
    PALETTE,
    Picture,
    count_label,
    finish,
    label,
    legend,
    logarithmic_y,
    panels,
    styles,
    titled,
    wide,
)

HOSTILE = "$\\frac{</text><script>$"


def drawn(name: str = "plot", title: str = "Title") -> Picture:
    looks = styles(["base", "one", HOSTILE], "base")
    with panels(2) as (figure, axes):
        for one in axes:
            titled(one, title, "λ (nats)", "y")
            for value, look in looks.items():
                one.plot([0, 1, 2], [1, 20, 300 + len(value)], color=look.colour)
            logarithmic_y(one)
        legend(figure, looks)
        return finish(figure, name, "alt", "caption")


def test_both_forms_of_a_picture() -> None:
    picture = drawn()
    tree = ElementTree.fromstring(picture.svg)
    words = [(e.text or "").strip() for e in tree.iter("text")]
    assert {"Title", "λ (nats)", "base", "one", HOSTILE} <= set(words)
    assert not re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", picture.svg)
    inks = set(re.findall(r"var\((--\w+)\)", picture.svg))
    assert {"--base", "--s1", "--s2", "--text"} <= inks
    assert all(PALETTE.count(f"{ink}:#") == 2 for ink in inks)  # light and dark
    with Image.open(io.BytesIO(picture.png)) as image:
        assert 600 < image.width < 1100
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert pixels[0].tolist() == [255, 255, 255]
    colours = {tuple(pixel) for pixel in np.unique(pixels, axis=0).tolist()}
    near = min(sum(abs(a - b) for a, b in zip(c, (0x00, 0x67, 0xA8), strict=True)) for c in colours)
    assert near < 12  # few colours, yet the lines' own
    assert len(picture.png) < 60_000


def test_no_two_plots_share_an_id() -> None:
    ids = re.findall(r'id="([^"]*)"', drawn("a").svg + drawn("b").svg)
    assert len(ids) == len(set(ids)) > 10


def test_drawing_is_repeatable() -> None:
    assert drawn() == drawn()


def test_styles_are_told_apart() -> None:
    values = [f"v{i}" for i in range(30)]
    found = styles(values, "v3")
    assert list(found) == ["v3", *(v for v in values if v != "v3")]
    looks = [(one.colour, one.dashes) for one in found.values()]
    assert len(set(looks)) == 30
    first = list(found.values())[:9]
    assert len({one.colour for one in first}) == len({one.marker for one in first}) == 9
    assert {one.dashes for one in first} == {"-"}
    assert styles(values, "v3")["v7"] == styles([*values, "more"], "v3")["v7"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_panels(count: int) -> None:
    with panels(count) as (figure, axes):
        assert len(axes) == count == len(figure.axes)


def test_labels() -> None:
    assert label("shifted_32") == "shifted_32"
    assert label("a\nb\u202ec") == "a?b?c"
    assert len(label("x" * 100)) == 44


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 30], True), ([1, 10], False), ([-1, 30], False), ([], False), ([1, np.nan, 30], True)],
)
def test_wide_values(values: list[float], expected: bool) -> None:
    assert wide(np.asarray(values, dtype=np.float64)) == expected


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (640, "640"), (6400, "6.4k"), (2e6, "2M"), (3e9, "3G")]
)
def test_counts(value: float, words: str) -> None:
    assert count_label(value) == words
