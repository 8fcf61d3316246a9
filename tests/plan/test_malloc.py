"""Footprints against what any allocator must and glibc does take."""

import ctypes
from array import array

import pytest

from simple_diffusion.plan.malloc import footprints

MB = 10**6
glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not tell"
)


def played(*events: tuple[int, int]) -> "array[int]":
    return array("q", [number for event in events for number in event])


@glibc
def test_each_stretch_has_its_peak() -> None:
    first = played((1, 100 * MB), (2, 200 * MB), (1, -100 * MB))
    second = played((3, 50 * MB), (2, -200 * MB), (3, -50 * MB))
    third = played((4, 10 * MB), (4, -10 * MB))
    sizes = footprints([first, second, third])
    assert sizes == pytest.approx([300 * MB, 250 * MB, 10 * MB], abs=MB)


@glibc
def test_holes_that_fit_nothing_stay() -> None:
    small, large, count = 100_000, 110_000, 200  # too small to be mapped singly
    fill = [(n, small) for n in range(1, count + 1)]
    free_every_other = [(n, -small) for n in range(2, count + 1, 2)]
    refill = [(n, large) for n in range(count + 1, count + count // 2)]
    sizes = footprints([played(*fill), played(*free_every_other, *refill)])
    assert sizes is not None
    assert sizes[0] == pytest.approx(count * small, rel=0.02)
    assert sizes[1] == pytest.approx(count * small + len(refill) * large, rel=0.02)


@glibc
def test_what_the_system_refuses_is_not_known() -> None:
    assert footprints([played((1, 10**18))]) is None


@glibc
def test_blocks_are_not_written_to() -> None:
    assert footprints([played((1, 10**11), (1, -(10**11)))]) in (
        None,  # a system that does not overcommit
        [pytest.approx(10**11, abs=MB)],
    )
