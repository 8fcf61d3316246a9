"""Rotary and learned positions."""

import cmath

import pytest
import torch

from simple_diffusion.models.positions import (
    ROTARY_BASE,
    LearnedPositions,
    axial_rotation,
    rotate,
)


def test_rotation_equals_complex_multiplication() -> None:
    rows, columns, d = 3, 5, 8
    x = torch.randn(1, rows * columns, 2, d, dtype=torch.float64)
    out = rotate(x, axial_rotation(rows, columns, d))
    for row in range(rows):
        for column in range(columns):
            token = row * columns + column
            for i in range(d // 2):
                axis, exponent = (row, i) if i < d // 4 else (column, i - d // 4)
                angle = axis * ROTARY_BASE ** (-exponent / (d // 4))
                for head in range(2):
                    pair = complex(x[0, token, head, i], x[0, token, head, i + d // 2])
                    turned = pair * cmath.exp(1j * angle)
                    got = complex(out[0, token, head, i], out[0, token, head, i + d // 2])
                    assert abs(got - turned) < 1e-6


def dot_products(rows: int, columns: int) -> torch.Tensor:
    """⟨R_a q, R_b k⟩ for one q and one k at all cells a, b: (rows, columns, rows, columns)."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    rotation = axial_rotation(rows, columns, 16)
    count = rows * columns
    turned_q = rotate(q.expand(1, count, 16), rotation)[0]
    turned_k = rotate(k.expand(1, count, 16), rotation)[0]
    return (turned_q @ turned_k.T).view(rows, columns, rows, columns)


def test_dot_products_depend_on_the_offset_only() -> None:
    dots = dot_products(4, 6)
    by_offset: dict[tuple[int, int], list[float]] = {}
    for y in range(4):
        for x in range(6):
            for v in range(4):
                for u in range(6):
                    by_offset.setdefault((v - y, u - x), []).append(float(dots[y, x, v, u]))
    for values in by_offset.values():
        assert max(values) - min(values) < 1e-5
    means = torch.tensor([sum(values) / len(values) for values in by_offset.values()])
    apart = (means[:, None] - means).abs() + torch.eye(len(means))
    assert apart.min() > 1e-4  # and every offset, in either direction, looks different


def test_a_larger_grid_extends_a_smaller_one() -> None:
    small, large = dot_products(3, 4), dot_products(6, 9)
    torch.testing.assert_close(large[:3, :4, :3, :4], small, rtol=0, atol=1e-5)


def test_learned_positions_are_the_table_in_row_order() -> None:
    positions = LearnedPositions(4, 3)
    out = positions(4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(out[row * 4 + column], positions.table[:, row, column])


@pytest.mark.parametrize("grid", [(8, 8), (4, 8), (16, 12)])
def test_resampled_positions_keep_their_place_in_the_image(grid: tuple[int, int]) -> None:
    # Bicubic interpolation is exact on ramps, away from the border: a table that holds its own
    # coordinates in [0, 1] must hold them on any grid.
    side = 8
    positions = LearnedPositions(side, 2)
    centres = (torch.arange(side) + 0.5) / side
    with torch.no_grad():
        positions.table[0] = centres[:, None].expand(side, side)
        positions.table[1] = centres[None, :].expand(side, side)
    rows, columns = grid
    out = positions(rows, columns).view(rows, columns, 2)
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
    inside_y, inside_x = (y > 0.25) & (y < 0.75), (x > 0.25) & (x < 0.75)
    # PyTorch's cubic kernel (a = -0.75) bends a ramp by at most 0.05 of a cell.
    torch.testing.assert_close(out[inside_y, 0, 0], y[inside_y], rtol=0, atol=0.06 / side)
    torch.testing.assert_close(out[0, inside_x, 1], x[inside_x], rtol=0, atol=0.06 / side)
