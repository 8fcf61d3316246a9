"""Bucket shapes and the choice among them, against the definitions written out."""

from fractions import Fraction
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.order.buckets import bucket_shapes, nearest_bucket


def test_shapes_by_hand() -> None:
    # 512² = 262,144. 576: 455.1 -> 448; 640: 409.6 -> 384; 704: 372.4 -> 384; 768: 341.3 -> 320,
    # which is longer than 2:1.
    assert bucket_shapes(512, max_aspect=2.0, multiple=64) == (
        (384, 640),
        (384, 704),
        (448, 576),
        (512, 512),
        (576, 448),
        (640, 384),
        (704, 384),
    )


def test_squares_only() -> None:
    assert bucket_shapes(64, max_aspect=1.0, multiple=8) == ((64, 64),)


@settings(deadline=None, max_examples=150)
@given(factor=st.integers(1, 40), multiple=st.integers(1, 64), max_aspect=st.floats(1.0, 4.0))
def test_shapes_are_all_that_are_allowed(factor: int, multiple: int, max_aspect: float) -> None:
    size = factor * multiple
    expected = set()
    for long_side in range(size, 5 * size, multiple):
        sides = range(multiple, size + 1, multiple)
        short = min(sides, key=lambda side: abs(log(side * long_side / size**2)))
        within = 1 / 2 <= Fraction(short * long_side, size**2) ** 2 <= 2
        if within and long_side <= max_aspect * short:
            expected |= {(short, long_side), (long_side, short)}
    if len(expected) == 1 and max_aspect > 1.0:
        with pytest.raises(ValueError, match="no shape but the square"):
            bucket_shapes(size, max_aspect=max_aspect, multiple=multiple)
        return
    shapes = bucket_shapes(size, max_aspect=max_aspect, multiple=multiple)
    assert list(shapes) == sorted(expected)
    assert (size, size) in shapes
    assert len({width / height for height, width in shapes}) == len(shapes)


@settings(deadline=None, max_examples=200)
@given(
    images=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=30),
    shapes=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        min_size=1,
        max_size=9,
        unique_by=lambda shape: shape[1] / shape[0],
    ),
)
def test_nearest_is_nearest(images: list[tuple[int, int]], shapes: list[tuple[int, int]]) -> None:
    widths = np.array([width for width, _ in images], dtype=np.int32)
    heights = np.array([height for _, height in images], dtype=np.int32)
    chosen = nearest_bucket(widths, heights, shapes)
    for (width, height), number in zip(images, chosen.tolist(), strict=True):
        known = width > 0 and height > 0
        aspect = log(width / height) if known else 0.0
        centres = [log(shape[1] / shape[0]) for shape in shapes]
        distance = abs(centres[number] - aspect)
        nearest = min(abs(centre - aspect) for centre in centres)
        assert distance <= nearest + 1e-8
        tied = [abs(c) for c in centres if abs(c - aspect) <= nearest + 1e-10]
        if known:
            assert abs(centres[number]) == pytest.approx(min(tied), abs=1e-8)


def test_ties_go_to_the_squarer_and_unknown_to_the_square() -> None:
    shapes = [(128, 32), (64, 64), (32, 128)]  # 1:4, 1:1, 4:1
    widths = np.array([200, 100, 201, 100, 0, 500, 0])
    heights = np.array([100, 200, 100, 201, 500, 0, 0])
    assert nearest_bucket(widths, heights, shapes).tolist() == [1, 1, 2, 0, 1, 1, 1]


def test_ratios_do_as_well_as_sizes() -> None:
    shapes = bucket_shapes(256, max_aspect=2.0, multiple=32)
    widths, heights = np.array([640, 480, 333]), np.array([480, 640, 512])
    ratios = widths / heights
    by_ratio = nearest_bucket(ratios, np.ones(3), shapes)
    assert by_ratio.tolist() == nearest_bucket(widths, heights, shapes).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 100}, "no multiple of 32; use 96"),
        ({"image_size": 16}, "no multiple of 32; use 32"),
        ({"image_size": 0}, "image_size is 0"),
        ({"multiple": 0}, "multiple is 0"),
        ({"max_aspect": 0.5}, "max_aspect is 0.5"),
        ({"max_aspect": float("nan")}, "max_aspect is nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bucket_shapes(**{"image_size": 64, "max_aspect": 2.0, "multiple": 32, **arguments})  # type: ignore[arg-type]


def test_no_shapes() -> None:
    with pytest.raises(ValueError, match="at least one bucket"):
        nearest_bucket(np.array([1]), np.array([1]), [])
